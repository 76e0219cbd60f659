"""The graph, its types, and what is true of them; knows no file format and no target."""

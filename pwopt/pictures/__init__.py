"""Pictures: data in, a matplotlib figure out; matplotlib is loaded when something is drawn."""

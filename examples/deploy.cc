// Runs an executable of pwopt: the inputs' bytes from stdin, the outputs' to stdout.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "pwopt.h"

static std::vector<void*> arrays(const pwopt_tensor* tensors, int count) {
  std::vector<void*> made;
  for (int i = 0; i < count; ++i) {  // at multiples of 64 bytes they are used without a copy
    made.push_back(std::aligned_alloc(64, (tensors[i].bytes / 64 + 2) * 64));
    std::fprintf(stderr, "%s: %s, %zu bytes\n", tensors[i].name, tensors[i].dtype,
                 tensors[i].bytes);
  }
  return made;
}

int main() {
  const pwopt_tensor *inputs, *outputs;
  const int input_count = pwopt_inputs(&inputs), output_count = pwopt_outputs(&outputs);
  std::vector<void*> x = arrays(inputs, input_count), y = arrays(outputs, output_count);
  for (int i = 0; i < input_count; ++i) {
    if (std::fread(x[i], 1, inputs[i].bytes, stdin) != inputs[i].bytes) return 2;
  }
  if (pwopt_run(x.data(), y.data())) {
    std::fprintf(stderr, "%s\n", pwopt_error());
    return 1;
  }
  for (int i = 0; i < output_count; ++i) std::fwrite(y[i], 1, outputs[i].bytes, stdout);
}

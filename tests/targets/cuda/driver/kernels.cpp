// Kernels for the emulated driver: sizes of the parameters beside each.
#include <cstddef>
#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))
#define KERNEL(name, ...)                                        \
  EXPORT const size_t name##_sizes[] = {__VA_ARGS__, 0};         \
  EXPORT void name(void** p, const unsigned* grid, unsigned threads, unsigned shared)

static float* at(void* parameter) { return *(float**)parameter; }

// y[i] = 2 x[i]
KERNEL(twice, 8, 8) {
  for (unsigned i = 0; i < grid[0] * threads; i++) at(p[1])[i] = 2 * at(p[0])[i];
}
// y[i] = x[i] + c[0]
KERNEL(add_constant, 8, 8, 8) {
  for (unsigned i = 0; i < grid[0] * threads; i++) at(p[2])[i] = at(p[0])[i] + at(p[1])[0];
}
// z[i] = x[i] * y[i]
KERNEL(product, 8, 8, 8) {
  for (unsigned i = 0; i < grid[0] * threads; i++) at(p[2])[i] = at(p[0])[i] * at(p[1])[i];
}
// x[i] += 1, in place
KERNEL(increment, 8) {
  for (unsigned i = 0; i < grid[0] * threads; i++) at(p[0])[i] += 1;
}
// y[i] = x[i], x through a tensor map
KERNEL(through_map, 128, 8) {
  const float* x = *(const float**)p[0];
  uint64_t extent = *((const uint64_t*)p[0] + 1);
  for (unsigned i = 0; i < extent; i++) at(p[1])[i] = x[i];
}

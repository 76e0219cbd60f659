/* An executable of pwopt (model.so) from C and C++: link it, or open it with dlopen().
 *
 * Nothing of pwopt or TVM is needed beside it where it was compiled for one thread. With more it
 * looks for libtvm_ffi.so and libtvm_runtime.so in its own folder and where the loader looks. */
#ifndef PWOPT_H_
#define PWOPT_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* An input or output. */
typedef struct pwopt_tensor {
  const char* name;     /* in the model */
  const char* dtype;    /* as in ONNX, in lower case: "float32" */
  int32_t rank;         /* number of extents */
  const int64_t* shape; /* extents, in the model's order */
  size_t bytes;         /* of the array: contiguous, rows last */
} pwopt_tensor;

/* The model's inputs and outputs; returns their number. */
int pwopt_inputs(const pwopt_tensor** tensors);
int pwopt_outputs(const pwopt_tensor** tensors);

/* Runs the model once, from several threads at a time if need be.
 *
 * Takes an array for each input and output, in the order of the functions above; they must not
 * overlap. Arrays that start at a multiple of 64 bytes are used in place, others through a copy.
 * Returns 0, or -1 with the reason in pwopt_error(). */
int pwopt_run(const void* const* inputs, void* const* outputs);

/* Why this thread's last call failed. */
const char* pwopt_error(void);

#ifdef __cplusplus
}
#endif
#endif

/* What makes an executable callable from C: linked into each model.so, see pwopt.h.
 *
 * MODEL_H, written for each executable, has its inputs, outputs, sizes and entry function. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* dladdr */
#endif
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <tvm/ffi/c_api.h>

#include "pwopt.h"
#include MODEL_H /* INPUTS, OUTPUTS, ... */

#define ALIGNMENT 64
#define PAGE 4096
#define ROUND_UP(n) (((size_t)(n) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT)

static __thread char message[512];

static int fail(const char* text) {
  snprintf(message, sizeof message, "%s", text);
  return -1;
}

const char* pwopt_error(void) { return message; }

int pwopt_inputs(const pwopt_tensor** tensors) {
  *tensors = inputs_;
  return INPUTS;
}

int pwopt_outputs(const pwopt_tensor** tensors) {
  *tensors = outputs_;
  return OUTPUTS;
}

/* The kernels' own checks report here (linked with --wrap), so that they do without TVM. */
void __real_TVMFFIErrorSetRaisedFromCStrParts(const char*, const char**, int32_t)
    __attribute__((weak));

__attribute__((visibility("hidden")))
void __wrap_TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  size_t used = 0;
  message[0] = 0;
  for (int32_t i = 0; i < count && used < sizeof message; ++i) {
    if (parts[i]) used += snprintf(message + used, sizeof message - used, "%s", parts[i]);
  }
  if (__real_TVMFFIErrorSetRaisedFromCStrParts) {
    __real_TVMFFIErrorSetRaisedFromCStrParts(kind, parts, count);
  }
}

#ifndef REASON

extern const char pwopt_constants[], pwopt_constants_end[];
int ENTRY(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);

static const char* missing_instructions(void) {
#ifdef __x86_64__
  __builtin_cpu_init();
#define NEED(feature) \
  if (!__builtin_cpu_supports(feature)) return "built for processors with " feature
  if (LANES >= 8) {
    NEED("avx2");
    NEED("fma");
  }
  if (LANES >= 16) {
    NEED("avx512f");
    NEED("avx512vl");
  }
#if BF16
  NEED("avx512bf16");
#endif
#endif
  return NULL;
}

#if RUNTIME
/* Functions of TVM's runtime that the code calls through pointers, which TVM sets where TVM loads
 * the library. The code has those that it needs. */
#define FUNCTIONS(X) \
  X(TVMBackendParallelLaunch) X(TVMBackendAllocWorkspace) X(TVMBackendFreeWorkspace)
#define DECLARE(name) extern void* __##name __attribute__((weak));
FUNCTIONS(DECLARE)

static int (*get_global)(const TVMFFIByteArray*, TVMFFIObjectHandle*);
static int (*call)(TVMFFIObjectHandle, TVMFFIAny*, int32_t, TVMFFIAny*);
static int loaded;

static void* library(const char* name) {
  char path[4096];
  Dl_info self;
  void* handle = dlopen(name, RTLD_NOW | RTLD_GLOBAL);
  if (handle || !dladdr((void*)pwopt_run, &self)) return handle;
  const char* end = strrchr(self.dli_fname, '/');
  const int length = end ? (int)(end - self.dli_fname) : 1;
  snprintf(path, sizeof path, "%.*s/%s", length, end ? self.dli_fname : ".", name);
  return dlopen(path, RTLD_NOW | RTLD_GLOBAL);
}

static void load_runtime(void) {
  setenv("TVM_BIND_THREADS", "0", 0); /* or it pins the main thread to core 0 */
  void* ffi = library("libtvm_ffi.so"); /* first: the other one needs it */
  void* runtime = ffi ? library("libtvm_runtime.so") : NULL;
  if (!runtime) return;
  get_global = (int (*)(const TVMFFIByteArray*, TVMFFIObjectHandle*))dlsym(
      ffi, "TVMFFIFunctionGetGlobal");
  call = (int (*)(TVMFFIObjectHandle, TVMFFIAny*, int32_t, TVMFFIAny*))dlsym(
      ffi, "TVMFFIFunctionCall");
  loaded = get_global && call;
#define SET(name)                                              \
  if (&__##name) {                                             \
    if (!__##name) __##name = dlsym(runtime, #name);           \
    loaded = loaded && __##name;                               \
  }
  FUNCTIONS(SET)
}

/* Sizes this thread's pool: TVM has one for each thread that calls it. */
static const char* prepare(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  static __thread int done;
  pthread_once(&once, load_runtime);
  if (!loaded) {
    return "libtvm_ffi.so and libtvm_runtime.so must lie beside the executable, or where the "
           "loader looks";
  }
  if (THREADS == 1 || done) return NULL;
  TVMFFIByteArray name = {"runtime.config_threadpool", 25};
  TVMFFIObjectHandle function = NULL;
  TVMFFIAny arguments[2], result;
  memset(arguments, 0, sizeof arguments);
  memset(&result, 0, sizeof result);
  arguments[0].type_index = arguments[1].type_index = kTVMFFIInt;
  arguments[0].v_int64 = 1;
  arguments[1].v_int64 = THREADS;
  done = !get_global(&name, &function) && function && !call(function, arguments, 2, &result);
  return done ? NULL : "TVM's pool of threads cannot be set up";
}
#else
static const char* prepare(void) { return NULL; }
#endif

/* What runs need is kept for the next one; as many as ever ran at the same time. */
typedef struct scratch {
  struct scratch* next;
} scratch;
static scratch* spare;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static scratch* take(size_t bytes) {
  pthread_mutex_lock(&lock);
  scratch* found = spare;
  if (found) spare = found->next;
  pthread_mutex_unlock(&lock);
  return found ? found : (scratch*)aligned_alloc(ALIGNMENT, ROUND_UP(bytes));
}

static void give_back(scratch* mine) {
  pthread_mutex_lock(&lock);
  mine->next = spare;
  spare = mine;
  pthread_mutex_unlock(&lock);
}

/* Whether kernels can use an array as it lies: they may read 64 bytes past its end. */
static int fits(const void* array, size_t bytes) {
  uintptr_t start = (uintptr_t)array, end = start + bytes;
  return start % ALIGNMENT == 0 && (end - 1) / PAGE == (end + ALIGNMENT - 1) / PAGE;
}

static void bytes_argument(TVMFFIAny* argument, DLTensor* tensor, int64_t* size, void* data) {
  static int64_t stride = 1;
  memset(argument, 0, sizeof *argument);
  memset(tensor, 0, sizeof *tensor);
  tensor->data = data;
  tensor->device.device_type = kDLCPU;
  tensor->ndim = 1;
  tensor->dtype.code = kDLUInt;
  tensor->dtype.bits = 8;
  tensor->dtype.lanes = 1;
  tensor->shape = size;
  tensor->strides = &stride;
  argument->type_index = kTVMFFIDLTensorPtr;
  argument->v_ptr = tensor;
}

#define ARGUMENTS (2 + USED_INPUTS + OUTPUTS)

int pwopt_run(const void* const* inputs, void* const* outputs) {
  const char* reason = missing_instructions();
  if (!reason) reason = prepare();
  if (reason) return fail(reason);
  scratch* mine = take(SCRATCH_BYTES);
  if (!mine) return fail("out of memory");

  TVMFFIAny arguments[ARGUMENTS], result;
  DLTensor tensors[ARGUMENTS];
  int64_t sizes[ARGUMENTS] = {WORKSPACE_BYTES, pwopt_constants_end - pwopt_constants};
  void* data[ARGUMENTS];
  char* room = (char*)mine + ALIGNMENT; /* behind the link */
  data[0] = room;
  room += ROUND_UP(WORKSPACE_BYTES) + ALIGNMENT;
  data[1] = (void*)pwopt_constants;
  for (int i = 0; i < USED_INPUTS; ++i) {
    const void* given = inputs[used_inputs[i]];
    const size_t bytes = inputs_[used_inputs[i]].bytes;
    const int in_place = fits(given, bytes);
    if (!in_place) memcpy(room, given, bytes);
    data[2 + i] = in_place ? (void*)given : room;
    sizes[2 + i] = bytes ? bytes : 1;
    room += ROUND_UP(bytes) + ALIGNMENT;
  }
  for (int i = 0; i < OUTPUTS; ++i) {
    const size_t bytes = outputs_[made_outputs[i]].bytes;
    void* wanted = outputs[made_outputs[i]];
    data[2 + USED_INPUTS + i] = fits(wanted, bytes) ? wanted : room;
    sizes[2 + USED_INPUTS + i] = bytes ? bytes : 1;
    room += ROUND_UP(bytes) + ALIGNMENT;
  }
  for (int i = 0; i < ARGUMENTS; ++i) {
    bytes_argument(&arguments[i], &tensors[i], &sizes[i], data[i]);
  }
  memset(&result, 0, sizeof result);
  const int status = ENTRY(NULL, arguments, ARGUMENTS, &result);
  for (int i = 0; i < OUTPUTS && !status; ++i) {
    void* wanted = outputs[made_outputs[i]];
    void* made = data[2 + USED_INPUTS + i];
    if (made != wanted) memcpy(wanted, made, outputs_[made_outputs[i]].bytes);
  }
  give_back(mine);
  return status ? -1 : 0;
}

#else

int pwopt_run(const void* const* inputs, void* const* outputs) {
  (void)inputs;
  (void)outputs;
  return fail(REASON);
}

#endif

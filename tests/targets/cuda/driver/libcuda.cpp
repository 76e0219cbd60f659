// The part of the CUDA driver that pwopt calls, on host memory: "cubins" are shared libraries, and a
// graph's nodes run in a random order that its edges allow. It counts what is not given back. Its clock
// moves on by a microsecond for each block of a kernel.
#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include <cuda.h>

#define API extern "C" __attribute__((visibility("default"))) CUresult
#define INVALID CUDA_ERROR_INVALID_VALUE

using Body = void (*)(void** parameters, const unsigned* grid, unsigned threads, unsigned shared);

struct Kernel {
  Body body;
  const size_t* sizes;  // of the parameters, ended by 0
  unsigned dynamic_shared = 48 * 1024;
};
struct Node {
  long long* event = nullptr;  // that it records
  bool copy = false;
  CUDA_MEMCPY3D copied{};
  Kernel* kernel = nullptr;
  unsigned grid[3], threads, shared;
  std::vector<std::vector<char>> parameters;
  std::vector<size_t> after;
  size_t position;
};
struct Graph {
  std::vector<Node*> nodes;
};
struct Instance {
  std::vector<Node> nodes;
  Graph* graph;
};

static std::map<std::string, long> live;
static std::map<uintptr_t, size_t> memory;
static std::mutex lock;
static std::mt19937 order(1);
static thread_local std::vector<CUcontext> contexts;
static int the_context;
static thread_local long long now_us;

static void count(const char* what, long change) {
  std::lock_guard<std::mutex> guard(lock);
  live[what] += change;
}

extern "C" long emulated_live(const char* what) { return live[what]; }
extern "C" void emulated_seed(unsigned seed) { order.seed(seed); }

API cuInit(unsigned) { return getenv("EMULATED_NO_GPU") ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS; }
API cuDriverGetVersion(int* version) { return *version = 13000, CUDA_SUCCESS; }
API cuDeviceGetCount(int* n) { return *n = 1, CUDA_SUCCESS; }
API cuDeviceGet(CUdevice* device, int ordinal) { return *device = ordinal, CUDA_SUCCESS; }
API cuDeviceGetName(char* name, int size, CUdevice) {
  return snprintf(name, size, "Emulated GPU"), CUDA_SUCCESS;
}
API cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
  const char* told = getenv("EMULATED_CAPABILITY");
  int capability = told ? atoi(told) : 90;
  if (which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) *value = capability / 10;
  else if (which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) *value = capability % 10;
  else *value = 0;
  return CUDA_SUCCESS;
}
API cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice) {
  return *c = (CUcontext)&the_context, CUDA_SUCCESS;
}
API cuCtxGetCurrent(CUcontext* c) {
  return *c = contexts.empty() ? nullptr : contexts.back(), CUDA_SUCCESS;
}
API cuCtxGetDevice(CUdevice* device) { return *device = 0, CUDA_SUCCESS; }
API cuCtxPushCurrent_v2(CUcontext c) { return contexts.push_back(c), CUDA_SUCCESS; }
API cuCtxPopCurrent_v2(CUcontext* c) {
  if (contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  *c = contexts.back();
  return contexts.pop_back(), CUDA_SUCCESS;
}
static bool outside() { return contexts.empty(); }

// Kernels with more shared memory than EMULATED_FAULT break the context, and it stays so; with more
// than EMULATED_HANG, they never end; with more than EMULATED_ABORT, they end the process.
static bool broken;
static bool beyond(const char* name, unsigned shared) {
  const char* told = getenv(name);
  return told && shared > (unsigned)atoi(told);
}

// --- memory ---------------------------------------------------------------------------------------

API cuMemAlloc_v2(CUdeviceptr* at, size_t size) {
  if (outside()) return CUDA_ERROR_INVALID_CONTEXT;
  if (broken) return CUDA_ERROR_ILLEGAL_ADDRESS;
  if (!size) return INVALID;
  void* made = aligned_alloc(512, (size + 511) / 512 * 512);
  memset(made, 0xFF, (size + 511) / 512 * 512);  // NaN, whatever reads it
  std::lock_guard<std::mutex> guard(lock);
  memory[(uintptr_t)made] = size;
  live["memory"]++;
  return *at = (CUdeviceptr)made, CUDA_SUCCESS;
}
API cuMemFree_v2(CUdeviceptr at) {
  std::lock_guard<std::mutex> guard(lock);
  if (!memory.erase((uintptr_t)at)) return INVALID;
  live["memory"]--;
  return free((void*)at), CUDA_SUCCESS;
}
static bool holds(CUdeviceptr at, size_t size) {
  std::lock_guard<std::mutex> guard(lock);
  auto next = memory.upper_bound((uintptr_t)at);
  if (next == memory.begin()) return false;
  --next;
  return at + size <= next->first + next->second;
}
API cuPointerGetAttributes(unsigned n, CUpointer_attribute* which, void** data, CUdeviceptr at) {
  for (unsigned i = 0; i < n; i++) {
    int value = which[i] == CU_POINTER_ATTRIBUTE_MEMORY_TYPE ? CU_MEMORYTYPE_DEVICE : 0;
    *(int*)data[i] = holds(at, 1) ? value : which[i] == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL ? -2 : 0;
  }
  return CUDA_SUCCESS;
}
API cuPointerGetAttribute(void* data, CUpointer_attribute which, CUdeviceptr at) {
  return cuPointerGetAttributes(1, &which, &data, at);
}
API cuMemGetInfo_v2(size_t* free_, size_t* total) {
  return *total = 1ull << 34, *free_ = *total - (size_t)live["memory"], CUDA_SUCCESS;
}
API cuMemHostRegister_v2(void* at, size_t size, unsigned) {
  if ((uintptr_t)at % 4096 || !size) return INVALID;  // so that no page is pinned twice
  return count("pinned", 1), CUDA_SUCCESS;
}
API cuMemHostUnregister(void*) { return count("pinned", -1), CUDA_SUCCESS; }
API cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t size, CUstream) {
  if (outside() || !holds(at, size)) return INVALID;
  return memset((void*)at, value, size), CUDA_SUCCESS;
}
static CUresult upload(CUdeviceptr to, const void* from, size_t size) {
  if (outside() || !holds(to, size)) return INVALID;
  return memcpy((void*)to, from, size), CUDA_SUCCESS;
}
// From memory that is not pinned, this may return before the data are there.
struct Late { CUdeviceptr to; std::vector<char> data; };
static std::vector<Late> late;
API cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t size) {
  if (outside() || !holds(to, size)) return INVALID;
  std::lock_guard<std::mutex> guard(lock);
  late.push_back({to, {(const char*)from, (const char*)from + size}});
  return CUDA_SUCCESS;
}
API cuCtxSynchronize() {
  std::vector<Late> now;
  {
    std::lock_guard<std::mutex> guard(lock);
    now.swap(late);
  }
  for (auto& each : now)
    if (CUresult code = upload(each.to, each.data.data(), each.data.size())) return code;
  return CUDA_SUCCESS;
}
API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t size, CUstream) {
  count("bytes to the device", size);
  return upload(to, from, size);
}
API cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t size, CUstream) {
  if (outside() || !holds(from, size)) return INVALID;
  count("bytes to the host", size);
  return memcpy(to, (void*)from, size), CUDA_SUCCESS;
}
API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream) {
  if (outside() || !holds(to, size)) return INVALID;
  return memcpy((void*)to, (void*)from, size), CUDA_SUCCESS;
}

// --- code -----------------------------------------------------------------------------------------

API cuModuleLoadData(CUmodule* module, const void* image) {
  char path[] = "/tmp/pwopt-emulated-XXXXXX";
  int file = mkstemp(path);
  // The size of an ELF file: its table of sections comes last.
  const char* elf = (const char*)image;
  uint64_t sections = *(const uint64_t*)(elf + 40);
  size_t size = sections + *(const uint16_t*)(elf + 58) * *(const uint16_t*)(elf + 60);
  if (write(file, image, size) != (ssize_t)size) return INVALID;
  close(file);
  void* made = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  unlink(path);
  if (!made) return CUDA_ERROR_INVALID_IMAGE;
  count("module", 1);
  return *module = (CUmodule)made, CUDA_SUCCESS;
}
API cuModuleUnload(CUmodule) { return count("module", -1), CUDA_SUCCESS; }
API cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  Body body = (Body)dlsym((void*)module, name);
  auto sizes = (const size_t*)dlsym((void*)module, (std::string(name) + "_sizes").c_str());
  if (!body || !sizes) return CUDA_ERROR_NOT_FOUND;
  return *function = (CUfunction) new Kernel{body, sizes}, CUDA_SUCCESS;
}
API cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) {
  if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return INVALID;
  ((Kernel*)function)->dynamic_shared = value;
  return CUDA_SUCCESS;
}
static CUresult fill(Node* node, CUfunction f, const unsigned* g, const unsigned* b, unsigned shared,
                     void** parameters) {
  node->kernel = (Kernel*)f;
  if (shared > node->kernel->dynamic_shared || b[1] != 1 || b[2] != 1) return INVALID;
  memcpy(node->grid, g, sizeof node->grid);
  node->threads = b[0];
  node->shared = shared;
  node->parameters.clear();
  for (size_t i = 0; node->kernel->sizes[i]; i++) {
    auto bytes = (const char*)parameters[i];
    node->parameters.emplace_back(bytes, bytes + node->kernel->sizes[i]);
  }
  return CUDA_SUCCESS;
}
static CUresult execute(Node& node) {
  if (node.event) return *node.event = now_us, CUDA_SUCCESS;
  if (!node.copy) {
    if (beyond("EMULATED_HANG", node.shared)) pause();
    if (beyond("EMULATED_ABORT", node.shared)) abort();
    if (beyond("EMULATED_FAULT", node.shared)) broken = true;
    std::vector<void*> parameters;
    // A tensor map must lie at a multiple of 64 bytes.
    std::vector<void*> places;
    for (auto& each : node.parameters) {
      void* at = aligned_alloc(64, (each.size() + 63) / 64 * 64);
      memcpy(at, each.data(), each.size());
      parameters.push_back(at);
    }
    node.kernel->body(parameters.data(), node.grid, node.threads, node.shared);
    now_us += (long long)node.grid[0] * node.grid[1] * node.grid[2];
    for (void* at : parameters) free(at);
    return CUDA_SUCCESS;
  }
  auto& c = node.copied;
  bool down = c.dstMemoryType == CU_MEMORYTYPE_DEVICE;
  CUdeviceptr device = down ? c.dstDevice : c.srcDevice;
  if (c.Height != 1 || c.Depth != 1 || !holds(device, c.WidthInBytes)) return INVALID;
  count(down ? "bytes to the device" : "bytes to the host", c.WidthInBytes);
  if (down) memcpy((void*)c.dstDevice, c.srcHost, c.WidthInBytes);
  else memcpy(c.dstHost, (void*)c.srcDevice, c.WidthInBytes);
  return CUDA_SUCCESS;
}
API cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, CUstream, void** parameters, void**) {
  if (outside()) return CUDA_ERROR_INVALID_CONTEXT;
  unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
  Node node;
  if (CUresult code = fill(&node, f, grid, block, shared, parameters)) return code;
  return execute(node);
}

// --- graphs ---------------------------------------------------------------------------------------

API cuGraphCreate(CUgraph* graph, unsigned) {
  count("graph", 1);
  return *graph = (CUgraph) new Graph, CUDA_SUCCESS;
}
API cuGraphDestroy(CUgraph) { return count("graph", -1), CUDA_SUCCESS; }
static CUresult add(Graph* graph, Node* node, const CUgraphNode* after, size_t n, CUgraphNode* made) {
  for (size_t i = 0; i < n; i++) {
    for (size_t j = 0; j < i; j++)
      if (after[i] == after[j]) return INVALID;
    node->after.push_back(((Node*)after[i])->position);
  }
  node->position = graph->nodes.size();
  graph->nodes.push_back(node);
  return *made = (CUgraphNode)node, CUDA_SUCCESS;
}
API cuGraphAddKernelNode_v2(CUgraphNode* made, CUgraph graph, const CUgraphNode* after, size_t n,
                            const CUDA_KERNEL_NODE_PARAMS* p) {
  auto node = new Node;
  unsigned grid[] = {p->gridDimX, p->gridDimY, p->gridDimZ};
  unsigned block[] = {p->blockDimX, p->blockDimY, p->blockDimZ};
  if (p->extra) return INVALID;
  if (CUresult code = fill(node, p->func, grid, block, p->sharedMemBytes, p->kernelParams))
    return code;
  return add((Graph*)graph, node, after, n, made);
}
API cuGraphAddMemcpyNode(CUgraphNode* made, CUgraph graph, const CUgraphNode* after, size_t n,
                         const CUDA_MEMCPY3D* copy, CUcontext context) {
  if (context != (CUcontext)&the_context) return CUDA_ERROR_INVALID_CONTEXT;
  auto node = new Node;
  node->copy = true;
  node->copied = *copy;
  return add((Graph*)graph, node, after, n, made);
}
API cuGraphAddEventRecordNode(CUgraphNode* made, CUgraph graph, const CUgraphNode* after, size_t n,
                              CUevent event) {
  auto node = new Node;
  node->event = (long long*)event;
  return add((Graph*)graph, node, after, n, made);
}
API cuGraphInstantiateWithFlags(CUgraphExec* made, CUgraph graph, unsigned long long) {
  auto instance = new Instance{{}, (Graph*)graph};
  for (Node* node : instance->graph->nodes) instance->nodes.push_back(*node);
  count("instance", 1);
  return *made = (CUgraphExec)instance, CUDA_SUCCESS;
}
API cuGraphExecDestroy(CUgraphExec) { return count("instance", -1), CUDA_SUCCESS; }
API cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                      const CUDA_KERNEL_NODE_PARAMS* p) {
  unsigned grid[] = {p->gridDimX, p->gridDimY, p->gridDimZ};
  unsigned block[] = {p->blockDimX, p->blockDimY, p->blockDimZ};
  count("updates", 1);
  Node& target = ((Instance*)exec)->nodes[((Node*)node)->position];
  return fill(&target, p->func, grid, block, p->sharedMemBytes, p->kernelParams);
}
API cuGraphLaunch(CUgraphExec exec, CUstream) {
  if (outside()) return CUDA_ERROR_INVALID_CONTEXT;
  if (broken) return CUDA_ERROR_ILLEGAL_ADDRESS;
  auto& nodes = ((Instance*)exec)->nodes;
  std::vector<size_t> waits(nodes.size());
  std::vector<std::vector<size_t>> next(nodes.size());
  std::vector<size_t> ready;
  for (size_t i = 0; i < nodes.size(); i++) {
    waits[i] = nodes[i].after.size();
    for (size_t before : nodes[i].after) next[before].push_back(i);
    if (!waits[i]) ready.push_back(i);
  }
  while (!ready.empty()) {
    std::swap(ready[order() % ready.size()], ready.back());
    size_t now = ready.back();
    ready.pop_back();
    if (CUresult code = execute(nodes[now])) return code;
    for (size_t later : next[now])
      if (!--waits[later]) ready.push_back(later);
  }
  return CUDA_SUCCESS;
}

// --- streams and events ---------------------------------------------------------------------------

API cuStreamCreate(CUstream* stream, unsigned) {
  count("stream", 1);
  return *stream = (CUstream) new int, CUDA_SUCCESS;
}
API cuStreamDestroy_v2(CUstream) { return count("stream", -1), CUDA_SUCCESS; }
API cuStreamSynchronize(CUstream) { return broken ? CUDA_ERROR_ILLEGAL_ADDRESS : CUDA_SUCCESS; }
API cuEventCreate(CUevent* event, unsigned) {
  count("event", 1);
  return *event = (CUevent) new long long(0), CUDA_SUCCESS;
}
API cuEventDestroy_v2(CUevent) { return count("event", -1), CUDA_SUCCESS; }
API cuEventRecord(CUevent event, CUstream) { return *(long long*)event = now_us, CUDA_SUCCESS; }
API cuStreamWaitEvent(CUstream, CUevent, unsigned) { return CUDA_SUCCESS; }
API cuEventSynchronize(CUevent) { return CUDA_SUCCESS; }
API cuEventElapsedTime_v2(float* ms, CUevent first, CUevent second) {
  return *ms = 1e-3f * (*(long long*)second - *(long long*)first), CUDA_SUCCESS;
}

// --- tensor maps ----------------------------------------------------------------------------------

struct Map {
  uint64_t address, dims[5], strides[4];
  uint32_t box[5], rank;
};
// The limits are those that cuda.h names.
API cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                           const cuuint64_t* dims, const cuuint64_t* strides, const cuuint32_t* box,
                           const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                           CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  bool half = type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16 || type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  unsigned size = half ? 2 : 4, inner = box[0] * size;
  if (inner % 16 || (swizzle == CU_TENSOR_MAP_SWIZZLE_128B && inner > 128)) return INVALID;
  if ((uintptr_t)map % 64 || (uintptr_t)address % 16 || rank > 5) return INVALID;
  Map made{(uint64_t)address, {}, {}, {}, rank};
  for (unsigned i = 0; i < rank; i++) {
    if (!dims[i] || dims[i] > 1ull << 31 || !box[i] || box[i] > 256) return INVALID;
    if (!steps[i] || steps[i] > 8) return INVALID;
    made.dims[i] = dims[i], made.box[i] = box[i];
  }
  for (unsigned i = 0; i + 1 < rank; i++) {
    uint64_t before = i ? strides[i - 1] : size;
    if (strides[i] % 16 || strides[i] >> 40 || strides[i] < dims[i] * before) return INVALID;
    made.strides[i] = strides[i];
  }
  static_assert(sizeof made <= sizeof *map, "");
  return memcpy(map, &made, sizeof made), CUDA_SUCCESS;
}

static CUresult missing() { return CUDA_ERROR_NOT_SUPPORTED; }

API cuGetProcAddress_v2(const char* symbol, void** function, int, cuuint64_t,
                        CUdriverProcAddressQueryResult* result) {
  const char* suffixes[] = {"_v2", "WithFlags", ""};
  *function = (void*)missing;
  void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  for (const char* suffix : suffixes)
    if (void* found = dlsym(self, (std::string(symbol) + suffix).c_str())) {
      *function = found;
      break;
    }
  if (result) *result = CU_GET_PROC_ADDRESS_SUCCESS;
  return CUDA_SUCCESS;
}

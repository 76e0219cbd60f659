// A CUDA block on the CPU: one fiber per thread, collectives where the threads of a warp, a
// warpgroup or the block meet, and asynchronous copies and products with adversarial timing.
//
// Two timings bracket what the PTX memory model allows. LATE: copies land only when a thread waits
// for them, warpgroup products read their operands when they are issued: a missing wait shows.
// EARLY: copies land when they are issued, products read when they are waited for: memory that is
// reused too early shows. Fibers and blocks run in opposite orders in the two. Shared memory that
// nobody wrote holds NaN. The blocks of a cluster run together. Not modelled: bank conflicts, caches,
// memory fences.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <vector>

#define CUDART_INF_F __builtin_inff()
#define CUDART_NAN_F __builtin_nanf("")

// ---------------------------------------------------------------------------------------- types
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __global__
#define __device__ static
#define __host__
#define __restrict__
#define __grid_constant__
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;

namespace emu {
[[noreturn]] void fail(const char* text);
// The compiler takes a type's alignment for granted; `hidden` makes it look.
template <class T> inline T* hidden(T* p) { asm volatile("" : "+r"(p)); return p; }
template <class T> inline void aligned(const T* p, size_t n) {
  if ((uintptr_t)hidden(p) % n) fail("misaligned access");
}
template <class T> inline float as_float(T bits) { float f; memcpy(&f, &bits, 4); return f; }
inline uint as_bits(float f) { uint u; memcpy(&u, &f, 4); return u; }
}  // namespace emu

struct half {
  ushort bits;
  half() = default;
  half(float f) { _Float16 h = (_Float16)f; memcpy(&bits, &h, 2); }
  operator float() const { _Float16 h; memcpy(&h, &bits, 2); return (float)h; }
};
struct nv_bfloat16 {
  ushort bits;
  nv_bfloat16() = default;
  nv_bfloat16(float f) {
    uint u = emu::as_bits(f);
    bits = f != f ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
  }
  operator float() const { return emu::as_float((uint)bits << 16); }
};
typedef half __half;
typedef nv_bfloat16 __nv_bfloat16;

#define EMU_VECTOR(name, type, bytes, members, ...)                                        \
  struct alignas(bytes) name {                                                             \
    type members;                                                                          \
    name() = default;                                                                      \
    name(const name& o) { emu::aligned(&o, bytes); memcpy((void*)this, (void*)&o, bytes); }\
    name& operator=(const name& o) {                                                       \
      emu::aligned(this, bytes); emu::aligned(&o, bytes);                                  \
      memcpy((void*)this, (void*)&o, bytes); return *this; }                               \
    __VA_ARGS__                                                                            \
  };
#define EMU_COMMA ,
#define EMU_2(name, type, bytes) \
  EMU_VECTOR(name, type, bytes, x EMU_COMMA y, name(type a, type b) : x(a), y(b) {}) \
  static inline name make_##name(type a, type b) { return name(a, b); }
#define EMU_4(name, type, bytes) \
  EMU_VECTOR(name, type, bytes, x EMU_COMMA y EMU_COMMA z EMU_COMMA w, \
             name(type a, type b, type c, type d) : x(a), y(b), z(c), w(d) {}) \
  static inline name make_##name(type a, type b, type c, type d) { return name(a, b, c, d); }
EMU_2(uint2, uint, 8) EMU_4(uint4, uint, 16) EMU_2(int2, int, 8) EMU_4(int4, int, 16)
EMU_2(float2, float, 8) EMU_4(float4, float, 16) EMU_2(half2, half, 4) EMU_4(half4, half, 8)
EMU_2(nv_bfloat162, nv_bfloat16, 4) EMU_4(nv_bfloat164, nv_bfloat16, 8)
typedef half2 __half2;
typedef nv_bfloat162 __nv_bfloat162;
struct dim3 { uint x, y, z; dim3(uint x = 1, uint y = 1, uint z = 1) : x(x), y(y), z(z) {} };

static inline float __half2float(half h) { return h; }
static inline half __float2half(float f) { return f; }
static inline half __float2half_rn(float f) { return f; }
static inline float2 __half22float2(half2 h) { return float2(h.x, h.y); }
static inline half2 __floats2half2_rn(float a, float b) { return half2(a, b); }
static inline float __bfloat162float(nv_bfloat16 h) { return h; }
static inline nv_bfloat16 __float2bfloat16(float f) { return f; }
static inline nv_bfloat16 __float2bfloat16_rn(float f) { return f; }
static inline float2 __bfloat1622float2(nv_bfloat162 h) { return float2(h.x, h.y); }
static inline nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return nv_bfloat162(a, b); }
static inline uint __float_as_uint(float f) { return emu::as_bits(f); }
static inline int __float_as_int(float f) { return (int)emu::as_bits(f); }
static inline float __uint_as_float(uint u) { return emu::as_float(u); }
static inline float __int_as_float(int u) { return emu::as_float(u); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1 / a; }
static inline float rsqrtf(float a) { return 1 / sqrtf(a); }
using std::isfinite; using std::isinf; using std::isnan;
// CUDA's max and min of floats ignore a NaN.
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline uint max(uint a, uint b) { return a > b ? a : b; }
static inline uint min(uint a, uint b) { return a < b ? a : b; }

// --------------------------------------------------------------------------------------- fibers
namespace emu {
constexpr size_t STACK = 1 << 17, CAPACITY = 256 << 10, CANARY = 1024;
constexpr uchar POISON = 0xff;  // NaN in every floating-point type
enum Timing { LATE, EARLY };

struct Meeting { int arrived = 0, generation = 0; void* argument[128]; };
struct Wgmma { std::vector<float*> d[128]; uint64_t a, b; bool add; int n; void (*run)(Wgmma&); };
struct WgmmaQueue { std::vector<Wgmma> open; std::deque<std::vector<Wgmma>> groups; };
struct Block {
  int rank, alive; char* memory; dim3 index;
  std::vector<Meeting> warps, warpgroups;
  Meeting everybody, named[16];
  WgmmaQueue products[8];
};
struct Copy { uint to; const void* from; int size, valid; };
struct Fiber {
  void* sp; char* stack; dim3 index; int linear; bool done; Block* block;
  const int* waits_for; int seen;  // runs again once *waits_for is not `seen`
  std::vector<Copy> open; std::deque<std::vector<Copy>> groups;
};

static std::vector<Fiber> fibers;
static Fiber* current;
static void* scheduler;
static Timing timing;
static dim3 block_index, block_dim, grid_dim;
static char* memory;       // shared, of the current fiber's block: static, then dynamic
static size_t dynamic_at;  // where the latter begins
static Block* here;        // the current fiber's
static std::vector<Block> blocks;  // of the cluster that runs
static Meeting cluster_meeting;
static int cluster_threads, alive;
static long progress;  // changes whenever something happens; still for a round: deadlock
static const char* error;
static void (*entry)(void**);
static void** arguments;

extern "C" void emu_switch(void** save, void* load);
#if defined(__x86_64__)
asm("emu_switch:\n"
    "  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
    "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
    "  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n  ret\n");
static void* first_frame(char* top, void (*start)()) {
  void** sp = (void**)top - 2;
  sp[0] = (void*)start;
  return sp - 6;  // callee-saved registers, whatever they hold
}
#elif defined(__aarch64__)
asm("emu_switch:\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n"
    "  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n"
    "  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n  ret\n");
static void* first_frame(char* top, void (*start)()) {
  void** sp = (void**)(top - 160);
  sp[11] = (void*)start;
  return sp;
}
#else
#error "the emulator switches stacks on x86-64 and AArch64 only"
#endif

static inline void leave() { emu_switch(&current->sp, scheduler); }
static inline void wait_while(const int& value) {
  current->waits_for = &value; current->seen = value;
  leave();
}
[[noreturn]] inline void fail(const char* text) {
  error = text;
  for (;;) leave();
}
static inline void release() { here->everybody.arrived = 0; here->everybody.generation++; }
static void run_fiber() {
  entry(arguments);
  current->done = true; alive--; here->alive--; progress++;
  if (here->everybody.arrived && here->everybody.arrived == here->alive) release();
  for (;;) leave();
}

// `all` threads meet; the last to come runs f on everybody's arguments.
template <class F> static inline void meet(Meeting& at, int place, int all, void* mine, F f) {
  at.argument[place % 128] = mine; progress++;
  if (++at.arrived == all) { f(at.argument); at.arrived = 0; at.generation++; }
  else wait_while(at.generation);
}
template <class F> static inline void warp(void* mine, F f) {
  meet(here->warps[current->linear / 32], current->linear % 32, 32, mine, f);
}
template <class F> static inline void warpgroup(void* mine, F f) {
  meet(here->warpgroups[current->linear / 128], current->linear % 128, 128, mine, f);
}
// Threads that have ended count as arrived, as on the device.
static inline void barrier() {
  progress++;
  Meeting& all = here->everybody;
  if (++all.arrived == here->alive) release(); else wait_while(all.generation);
}
static inline void named_barrier(int id, int threads) {
  meet(here->named[id], 0, threads, nullptr, [](void**) {});
}
static inline uint shared_address(const void* p) {
  size_t at = (const char*)p - memory;
  if (at > CAPACITY) fail("not an address in shared memory");
  return (uint)at;
}
template <class T> static inline T& static_shared(size_t at) { return *(T*)(memory + at); }
}  // namespace emu

#define threadIdx (emu::current->index)
#define blockIdx emu::block_index
#define blockDim emu::block_dim
#define gridDim emu::grid_dim
static inline void __syncthreads() { emu::barrier(); }
static inline void __syncwarp(uint = ~0u) { emu::warp(nullptr, [](void**) {}); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline uint __activemask() { return ~0u; }

// ------------------------------------------------------------------------- shuffles and atomics
template <class T> static inline T __shfl_sync(uint, T value, int lane, int width = 32) {
  struct Mine { T value, result; int lane; } mine{value, value, lane};
  int base = emu::current->linear % 32 / width * width;
  mine.lane = base + lane % width;
  emu::warp(&mine, [](void** all) {
    for (int i = 0; i < 32; i++) ((Mine*)all[i])->result = ((Mine*)all[((Mine*)all[i])->lane])->value;
  });
  return mine.result;
}
template <class T> static inline T __shfl_xor_sync(uint m, T value, int mask, int = 32) {
  return __shfl_sync(m, value, emu::current->linear % 32 ^ mask);
}
template <class T> static inline T __shfl_down_sync(uint m, T value, int by, int width = 32) {
  int lane = emu::current->linear % 32;
  return __shfl_sync(m, value, lane % width + by < width ? lane + by : lane);
}
template <class T> static inline T __shfl_up_sync(uint m, T value, int by, int width = 32) {
  int lane = emu::current->linear % 32;
  return __shfl_sync(m, value, lane % width >= by ? lane - by : lane);
}
static inline uint __ballot_sync(uint, int predicate) {
  struct Mine { int predicate; uint result; } mine{predicate, 0};
  emu::warp(&mine, [](void** all) {
    uint bits = 0;
    for (int i = 0; i < 32; i++) bits |= (uint)!!((Mine*)all[i])->predicate << i;
    for (int i = 0; i < 32; i++) ((Mine*)all[i])->result = bits;
  });
  return mine.result;
}
template <class T> static inline T __ldg(const T* at) { return *at; }
template <class T> static inline T __ldcg(const T* at) { return *at; }
template <class T> static inline T atomicAdd(T* at, T value) { T old = *at; *at += value; return old; }
template <class T> static inline T atomicExch(T* at, T value) { T old = *at; *at = value; return old; }

// --------------------------------------------------------------- cp.async, ldmatrix, mma.sync
namespace emu {
static inline void land(const Copy& c) {
  memcpy(memory + c.to, c.from, c.valid);
  memset(memory + c.to + c.valid, 0, c.size - c.valid);
}
static inline void cp_async(uint to, const void* from, int size, int valid) {
  if (to % size || (uintptr_t)from % size) fail("misaligned cp.async");
  if (valid < 0 || valid > size) fail("cp.async of an impossible size");
  Copy c{to, from, size, valid};
  if (timing == EARLY) land(c); else current->open.push_back(c);
}
static inline void commit_group() {
  current->groups.push_back(std::move(current->open)); current->open.clear();
}
static inline void wait_group(int pending) {
  auto& groups = current->groups;
  for (; (int)groups.size() > pending; groups.pop_front())
    for (auto& c : groups.front()) land(c);
}
static inline void wait_all() { commit_group(); wait_group(0); }

struct Matrix { uint* to[4]; uint row; };
static inline void ldmatrix(uint* a, uint* b, uint* c, uint* d, uint row, int count, bool transposed) {
  Matrix mine{{a, b, c, d}, row};
  warp(&mine, [=](void** all) {
    for (int m = 0; m < count; m++) for (int lane = 0; lane < 32; lane++) {
      ushort pair[2];
      for (int e = 0; e < 2; e++) {
        int r = transposed ? 2 * (lane % 4) + e : lane / 4;
        int c = transposed ? lane / 4 : 2 * (lane % 4) + e;
        uint at = ((Matrix*)all[m * 8 + r])->row;
        if (at % 16) fail("misaligned ldmatrix");
        memcpy(&pair[e], memory + at + 2 * c, 2);
      }
      memcpy(((Matrix*)all[lane])->to[m], pair, 4);
    }
  });
}

struct F16 { static constexpr int K = 16, SIZE = 2;
  static float at(uint w, int e) { half h; h.bits = w >> 16 * e; return h; } };
struct BF16 { static constexpr int K = 16, SIZE = 2;
  static float at(uint w, int e) { return as_float(w >> 16 * e << 16); } };
struct TF32 { static constexpr int K = 8, SIZE = 4;  // the last 13 bits are ignored
  static float at(uint w, int) { return as_float(w & 0xffffe000u); } };

static inline void round_tf32(uint* x) {
  if ((*x & 0x7f800000) != 0x7f800000) *x = (*x + 0x1000) & 0xffffe000;
}
struct Product { float* d[4]; uint a[4], b[2]; float c[4]; };
// m16n8k16 of 16-bit numbers, m16n8k8 of TF32, accumulated in float32
template <class T> static inline void mma(Product mine) {
  warp(&mine, [](void** all) {
    constexpr int K = T::K, E = 4 / T::SIZE;
    float a[16][K], b[8][K];
    for (int lane = 0; lane < 32; lane++) {
      Product* p = (Product*)all[lane];
      int row = lane / 4, column = lane % 4;
      for (int e = 0; e < E; e++) {
        for (int i = 0; i < 4; i++)
          a[row + 8 * (i & 1)][E * column + e + K / 2 * (i >> 1)] = T::at(p->a[i], e);
        for (int i = 0; i < 2; i++) b[row][E * column + e + K / 2 * i] = T::at(p->b[i], e);
      }
    }
    for (int lane = 0; lane < 32; lane++) {
      Product* p = (Product*)all[lane];
      for (int i = 0; i < 4; i++) {
        const float *x = a[lane / 4 + 8 * (i >> 1)], *y = b[2 * (lane % 4) + (i & 1)];
        float sum = p->c[i];
        for (int k = 0; k < K; k++) sum += x[k] * y[k];
        *p->d[i] = sum;
      }
    }
  });
}

// ------------------------------------------------------------------- mbarrier, TMA, wgmma (sm_90)
// Addresses in the shared memory of a cluster: the block's rank + 1 above 24 bits, or 0 for one's own.
static inline uint clustered(uint at, int rank) { return (at & 0xffffff) | (uint)(rank + 1) << 24; }
static inline uint everywhere(uint at) { return at >> 24 ? at : clustered(at, here->rank); }
static inline uint mapa(uint at, int rank) {
  if (rank >= (int)blocks.size()) fail("no such block in the cluster");
  return clustered(at, rank);
}
static inline void cluster_barrier() {
  meet(cluster_meeting, 0, cluster_threads, nullptr, [](void**) {});
}
struct Barrier { int count, pending, bytes; int phase; };
static std::map<uint, Barrier> barriers;
static inline Barrier& barrier_at(uint at) {
  auto found = barriers.find(everywhere(at));
  if (found == barriers.end()) fail("mbarrier used before its init");
  return found->second;
}
static inline void mbarrier_init(uint at, int count) {
  if (at % 8) fail("misaligned mbarrier");
  barriers[everywhere(at)] = {count, count, 0, 0};
}
static inline void mbarrier_check(Barrier& b) {
  if (b.pending == 0 && b.bytes == 0) { b.phase ^= 1; b.pending = b.count; progress++; }
}
static inline void mbarrier_expect(uint at, int bytes) { barrier_at(at).bytes += bytes; progress++; }
static inline void mbarrier_arrive(uint at, int bytes = 0) {
  Barrier& b = barrier_at(at);
  b.bytes += bytes; progress++;
  if (--b.pending < 0) fail("more arrivals at an mbarrier than it counts");
  mbarrier_check(b);
}

// What cuTensorMapEncodeTiled describes; byte strides, innermost axis first.
struct TensorMap {
  char* base; int64_t dim[5], stride[5]; int rank, size, box[5], step[5], swizzle;
  int rounds;  // float32 to TF32
};
struct Load { uint to; TensorMap map; int at[5]; uint barrier; };
static std::deque<Load> loads;
static inline uint swizzled(uint at, int bytes) {
  return bytes ? at ^ ((at >> 7 & (bytes / 16 - 1)) << 4) : at;
}
static inline void land(const Load& l) {
  const TensorMap& t = l.map;
  int64_t count = 1;
  for (int i = 0; i < t.rank; i++) count *= (t.box[i] + t.step[i] - 1) / t.step[i];
  for (int64_t e = 0; e < count; e++) {
    int64_t rest = e, offset = 0; bool inside = true;
    for (int i = 0; i < t.rank; i++) {
      int n = (t.box[i] + t.step[i] - 1) / t.step[i];
      int64_t x = rest % n * t.step[i] + l.at[i];
      rest /= n; inside &= x >= 0 && x < t.dim[i]; offset += x * t.stride[i];
    }
    char* to = blocks[(l.to >> 24) - 1].memory + swizzled((l.to & 0xffffff) + e * t.size, t.swizzle);
    if (inside) memcpy(to, t.base + offset, t.size); else memset(to, 0, t.size);
    if (t.rounds) round_tf32((uint*)to);
  }
  Barrier& b = barrier_at(l.barrier);
  b.bytes -= count * t.size; progress++;
  mbarrier_check(b);
}
static inline void tma_load(uint to, const void* map, std::initializer_list<int> at, uint barrier) {
  // The map is a parameter of a thread that may end first.
  Load l{everywhere(to), *(const TensorMap*)map, {}, everywhere(barrier)};
  if ((to & 0xffffff) % (l.map.swizzle ? l.map.swizzle * 8 : 128)) fail("misaligned TMA destination");
  int i = 0;
  for (int x : at) l.at[i++] = x;
  if (timing == EARLY) land(l); else loads.push_back(l);
}
// To the same place in the blocks of the mask, each of which counts the bytes at its own barrier.
static inline void tma_multicast(uint to, const void* map, std::initializer_list<int> at,
                                 uint barrier, uint mask) {
  for (int rank = 0; mask >> rank; rank++)
    if (mask >> rank & 1) tma_load(mapa(to, rank), map, at, mapa(barrier, rank));
}
static inline bool mbarrier_test(uint at, int parity) { return barrier_at(at).phase != (parity & 1); }
static inline void mbarrier_wait(uint at, int parity) {
  while (!mbarrier_test(at, parity)) {
    size_t i = 0;
    while (i < loads.size() && loads[i].barrier != everywhere(at)) i++;
    if (i == loads.size()) { leave(); continue; }
    Load l = loads[i];
    loads.erase(loads.begin() + i);
    land(l);
  }
}

// A shared memory matrix descriptor's element, K-major: its row and byte within the row.
static inline uint described(uint64_t d, int row, int byte) {
  uint start = (d & 0x3fff) << 4, stride = (d >> 32 & 0x3fff) << 4;
  int code = d >> 62 & 3, bytes = code == 1 ? 128 : code == 2 ? 64 : code == 3 ? 32 : 0;
  return swizzled(start + row / 8 * stride + row % 8 * (bytes ? bytes : 16) + byte, bytes);
}
template <class T> static void run_wgmma(Wgmma& w) {
  static float a[64][T::K], b[256][T::K];
  auto element = [](uint at) { uint u = 0; memcpy(&u, memory + at, T::SIZE); return T::at(u, 0); };
  for (int k = 0; k < T::K; k++) {
    for (int r = 0; r < 64; r++) a[r][k] = element(described(w.a, r, k * T::SIZE));
    for (int n = 0; n < w.n; n++) b[n][k] = element(described(w.b, n, k * T::SIZE));
  }
  for (int t = 0; t < 128; t++) for (int i = 0; i < w.n / 2; i++) {
    int r = t / 32 * 16 + t % 32 / 4 + 8 * (i >> 1 & 1), n = i / 4 * 8 + 2 * (t % 4) + (i & 1);
    float sum = w.add ? *w.d[t][i] : 0;
    for (int k = 0; k < T::K; k++) sum += a[r][k] * b[n][k];
    *w.d[t][i] = sum;
  }
}
struct WgmmaMine { std::vector<float*> d; uint64_t a, b; bool add; };
template <class T> static inline void wgmma(WgmmaMine mine, int n) {
  WgmmaQueue& queue = here->products[current->linear / 128];
  warpgroup(&mine, [&](void** all) {
    Wgmma w;
    for (int t = 0; t < 128; t++) w.d[t] = ((WgmmaMine*)all[t])->d;
    WgmmaMine* p = (WgmmaMine*)all[0];
    w.a = p->a; w.b = p->b; w.add = p->add; w.n = n; w.run = run_wgmma<T>;
    if (timing == LATE) w.run(w); else queue.open.push_back(w);
  });
}
static inline void wgmma_commit() {
  WgmmaQueue& queue = here->products[current->linear / 128];
  warpgroup(nullptr, [&](void**) { queue.groups.push_back(queue.open); queue.open.clear(); });
}
static inline void wgmma_wait(int pending) {
  WgmmaQueue& queue = here->products[current->linear / 128];
  warpgroup(nullptr, [&](void**) {
    for (; (int)queue.groups.size() > pending; queue.groups.pop_front())
      for (auto& w : queue.groups.front()) w.run(w);
  });
}

// --------------------------------------------------------------------------------------- launch
static void run_cluster(int threads, size_t shared) {
  for (Block& b : blocks) {
    memset(b.memory, POISON, shared + CANARY);
    b.warps.assign((threads + 31) / 32, {}); b.warpgroups.assign((threads + 127) / 128, {});
    b.everybody = {}; for (auto& n : b.named) n = {};
    for (auto& p : b.products) p = {};
    b.alive = threads;
  }
  barriers.clear(); loads.clear();
  cluster_meeting = {}; cluster_threads = alive = threads * (int)blocks.size();
  for (int i = 0; i < cluster_threads; i++) {
    Fiber& f = fibers[i];
    int t = i % threads;
    f.linear = t; f.block = &blocks[i / threads]; f.done = false; f.waits_for = nullptr;
    f.open.clear(); f.groups.clear();
    f.index = dim3(t % block_dim.x, t / block_dim.x % block_dim.y, t / (block_dim.x * block_dim.y));
    f.sp = first_frame(f.stack + STACK, run_fiber);
  }
  while (alive) {
    long before = progress;
    for (int i = 0; i < cluster_threads; i++) {
      Fiber& f = fibers[timing == LATE ? i : cluster_threads - 1 - i];
      if (f.done || (f.waits_for && *f.waits_for == f.seen)) continue;
      f.waits_for = nullptr;
      current = &f; here = f.block; memory = here->memory; block_index = here->index;
      emu_switch(&scheduler, f.sp);
      if (error) return;
    }
    if (progress == before) { error = "deadlock"; return; }
  }
}

static const char* launch(void (*kernel)(void**), void** values, const int* grid, const int* block,
                          size_t static_bytes, size_t dynamic_bytes, int cluster, int how) {
  static std::vector<char*> memories;
  int threads = block[0] * block[1] * block[2];
  while (fibers.size() < (size_t)threads * cluster) {
    fibers.emplace_back();
    fibers.back().stack = (char*)aligned_alloc(64, STACK);
  }
  while (memories.size() < (size_t)cluster)
    memories.push_back((char*)aligned_alloc(4096, CAPACITY + CANARY + 4096));
  timing = (Timing)how; error = nullptr; entry = kernel; arguments = values;
  dynamic_at = (static_bytes + 1023) / 1024 * 1024;
  size_t end = dynamic_at + dynamic_bytes;
  if (end > CAPACITY) return "more shared memory than there is";
  if (grid[0] % cluster) return "a grid that is no multiple of its clusters";
  grid_dim = dim3(grid[0], grid[1], grid[2]); block_dim = dim3(block[0], block[1], block[2]);
  long total = (long)grid[0] * grid[1] * grid[2] / cluster;
  blocks.resize(cluster);
  for (long i = 0; i < total; i++) {
    for (int rank = 0; rank < cluster; rank++) {
      long b = (timing == LATE ? i : total - 1 - i) * cluster + rank;
      blocks[rank].rank = rank; blocks[rank].memory = memories[rank];
      blocks[rank].index = dim3(b % grid[0], b / grid[0] % grid[1], b / ((long)grid[0] * grid[1]));
    }
    run_cluster(threads, end);
    for (Block& b : blocks)
      for (size_t at = end; !error && at < end + CANARY; at++)
        if ((uchar)b.memory[at] != POISON) error = "written past the end of shared memory";
    if (error) return error;
  }
  return nullptr;
}
}  // namespace emu
typedef emu::TensorMap CUtensorMap;

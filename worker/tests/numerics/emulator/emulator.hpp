// CUDA on a CPU, enough for kernels/*.cu: a block's threads are fibers, blocks run one after the other, on one thread of the host.
//
// Barriers and shuffles switch fibers, so the kernels' logic runs as it is written; of inline PTX there are only `pack_bf16`,
// `to_tf32` and the two `mma_`, which have stand-ins here. A barrier that some threads do not reach, and writes past the dynamic shared memory, end
// the process with a message. Between two barriers the threads run one after the other, forwards or backwards: a missing barrier shows
// in one of the two. Not found: what only a GPU's memory model or compiler does.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define EMULATED
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __restrict__

struct alignas(16) float4 {
    float x, y, z, w;
};

namespace emulator {

struct Index {
    unsigned x, y, z;
};

enum Wait { NOTHING, FOR_WARP, FOR_BLOCK };

struct Fiber {
    void* stack_pointer;
    char* stack;
    unsigned number;
    bool done;
    Wait wait;
    // What the warp exchanges.
    uint64_t slot;
    uint32_t a[4], b[2];
};

struct Block {
    std::vector<Fiber> fibers;
    unsigned threads;
    Fiber* current;
    void* scheduler;
    Index index, grid;
    void (*body)(const void*);
    const void* arguments;
    std::vector<char> shared;
    size_t shared_bytes;
    bool vote;
};

static Block block;
// Blocks, warps and lanes run from the last to the first.
static bool backwards = false;

// The `i`th of `n` to run.
static unsigned turn(unsigned i, unsigned n) { return backwards ? n - 1 - i : i; }
static const char* kernel_name = "";

static const size_t STACK_BYTES = 128 * 1024;
static const size_t GUARD_BYTES = 256;
static const char POISON = (char)0xf5;

[[noreturn]] static void fail(const char* what) {
    fprintf(stderr, "emulator: %s in %s, block (%u, %u, %u)\n", what, kernel_name, block.index.x, block.index.y, block.index.z);
    abort();
}

// Saves what a call preserves, and goes on where `to` was saved.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.local emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
)");

static void yield(Wait wait) {
    Fiber* me = block.current;
    me->wait = wait;
    emulator_switch(&me->stack_pointer, block.scheduler);
}

static void entry() {
    block.body(block.arguments);
    block.current->done = true;
    emulator_switch(&block.current->stack_pointer, block.scheduler);
    abort();
}

static void start(Fiber& fiber) {
    if (!fiber.stack) fiber.stack = (char*)aligned_alloc(64, STACK_BYTES);
    void** top = (void**)(fiber.stack + STACK_BYTES - 64);
    *--top = nullptr;
    *--top = (void*)&entry;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.stack_pointer = top;
    fiber.done = false;
    fiber.wait = NOTHING;
}

// Runs the fibers of a warp until all of them are done or wait for the block.
static void run_warp(Fiber* first, Fiber* end) {
    for (;;) {
        for (unsigned i = 0; i < end - first; i++) {
            Fiber* f = first + turn(i, end - first);
            if (f->done || f->wait != NOTHING) continue;
            block.current = f;
            emulator_switch(&block.scheduler, f->stack_pointer);
        }
        unsigned live = 0, waiting = 0;
        for (Fiber* f = first; f < end; f++) live += !f->done, waiting += !f->done && f->wait == FOR_WARP;
        if (waiting == 0) return;
        if (waiting != live) fail("only a part of a warp exchanges");
        for (Fiber* f = first; f < end; f++) f->wait = f->done ? f->wait : NOTHING;
    }
}

static void run_block() {
    std::fill(block.shared.begin(), block.shared.end(), POISON);
    for (unsigned i = 0; i < block.threads; i++) start(block.fibers[i]);
    for (;;) {
        for (unsigned i = 0; i < block.threads / 32; i++) {
            Fiber* first = &block.fibers[32 * turn(i, block.threads / 32)];
            run_warp(first, first + 32);
        }
        unsigned live = 0;
        for (unsigned i = 0; i < block.threads; i++) live += !block.fibers[i].done;
        if (live == 0) break;
        // Whoever is not done waits for the block.
        if (live != block.threads) fail("threads left before a barrier");
        for (unsigned i = 0; i < block.threads; i++) block.fibers[i].wait = NOTHING;
    }
    for (size_t i = block.shared_bytes; i < block.shared.size(); i++) {
        if (block.shared[i] != POISON) fail("a write past the dynamic shared memory");
    }
}

static void run(Index grid, unsigned threads, size_t shared_bytes, void (*body)(const void*), const void* arguments) {
    block.grid = grid;
    block.threads = threads;
    block.body = body;
    block.arguments = arguments;
    block.shared_bytes = shared_bytes;
    block.shared.resize(shared_bytes + GUARD_BYTES);
    block.vote = false;
    if (block.fibers.size() < threads) block.fibers.resize(threads, Fiber{});
    for (unsigned i = 0; i < threads; i++) block.fibers[i].number = i;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                block.index = {turn(x, grid.x), turn(y, grid.y), turn(z, grid.z)};
                run_block();
            }
}

template <class T>
T exchange(T value, unsigned lane) {
    static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
    Fiber* me = block.current;
    memcpy(&me->slot, &value, sizeof value);
    yield(FOR_WARP);
    T found;
    memcpy(&found, &block.fibers[(me->number & ~31u) + lane].slot, sizeof found);
    yield(FOR_WARP);
    return found;
}

inline float from_bf16(uint32_t pair, int half) {
    uint32_t bits = half ? pair & 0xffff0000u : pair << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (std::isnan(value)) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// ---------------------------------------------------------------- kernels by name

// As `Arg` in runtime.rs: pointer, 8 bytes, 4 bytes, float.
template <class T>
constexpr char kind_of() {
    return std::is_pointer<T>::value ? 'p' : std::is_same<T, float>::value ? 'f' : sizeof(T) == 8 ? 'l' : 'i';
}

template <class T>
T argument(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

template <class... A>
struct Call {
    void (*kernel)(A...);
    const uint64_t* bits;

    template <size_t... I>
    void apply(std::index_sequence<I...>) const {
        kernel(argument<A>(bits[I])...);
    }
    static void body(const void* self) { ((const Call*)self)->apply(std::index_sequence_for<A...>()); }
};

// False if the arguments are not those of the declaration.
template <class... A>
bool launch(void (*kernel)(A...), Index grid, unsigned threads, size_t shared_bytes, const char* kinds, const uint64_t* bits) {
    const char declared[] = {kind_of<A>()..., 0};
    if (strcmp(kinds, declared) != 0) {
        fprintf(stderr, "emulator: %s is declared with (%s) and launched with (%s)\n", kernel_name, declared, kinds);
        return false;
    }
    Call<A...> call = {kernel, bits};
    run(grid, threads, shared_bytes, &Call<A...>::body, &call);
    return true;
}

}  // namespace emulator

#define threadIdx (emulator::Index{emulator::block.current->number, 0, 0})
#define blockIdx (emulator::block.index)
#define blockDim (emulator::Index{emulator::block.threads, 1, 1})
#define gridDim (emulator::block.grid)
#define DYNAMIC_SHARED(type, name) type* name = (type*)emulator::block.shared.data()

inline void __syncthreads() { emulator::yield(emulator::FOR_BLOCK); }
inline void __syncwarp(unsigned = ~0u) { emulator::yield(emulator::FOR_WARP); }
inline int __syncthreads_or(int predicate) {
    emulator::block.vote |= predicate != 0;
    __syncthreads();
    bool vote = emulator::block.vote;
    __syncthreads();
    emulator::block.vote = false;
    __syncthreads();
    return vote;
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulator::exchange(value, (emulator::block.current->number & 31) ^ mask);
}
template <class T>
T atomicAdd(T* at, T value) {
    T old = *at;
    *at += value;
    return old;
}
inline unsigned atomicOr(unsigned* at, unsigned value) {
    unsigned old = *at;
    *at |= value;
    return old;
}
inline float __int_as_float(int bits) { return emulator::argument<float>((uint32_t)bits); }
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}

inline unsigned pack_bf16(float lo, float hi) { return emulator::to_bf16(hi) << 16 | emulator::to_bf16(lo); }

inline unsigned to_tf32(float value) {
    unsigned bits = __float_as_uint(value);
    return std::isnan(value) ? 0x7fffffff : (bits + 0x1000) & 0xffffe000u;
}

/// `c += a * b` of a warp: every thread shows its operands to the others. `left(thread, upper, k)` and `right(thread, k)` are elements of
/// the operands of the threads that hold them.
template <class Left, class Right>
inline void mma(float* c, const unsigned* a, const unsigned* b, int depth, Left left, Right right) {
    using namespace emulator;
    Fiber* me = block.current;
    memcpy(me->a, a, sizeof me->a);
    memcpy(me->b, b, sizeof me->b);
    yield(FOR_WARP);
    const Fiber* warp = &block.fibers[me->number & ~31u];
    unsigned g = me->number % 32 / 4, t = me->number % 4;
    for (int i = 0; i < 4; i++) {
        unsigned upper = i / 2, col = 2 * t + i % 2;
        for (int k = 0; k < depth; k++) c[i] += left(warp + g * 4, upper, k) * right(warp + col * 4, k);
    }
    yield(FOR_WARP);
}

inline void mma_bf16(float* c, const unsigned* a, const unsigned* b) {
    using emulator::Fiber, emulator::from_bf16;
    mma(c, a, b, 16,
        [](const Fiber* row, int upper, int k) { return from_bf16(row[k % 8 / 2].a[k / 8 * 2 + upper], k % 2); },
        [](const Fiber* col, int k) { return from_bf16(col[k % 8 / 2].b[k / 8], k % 2); });
}

inline void mma_tf32(float* c, const unsigned* a, const unsigned* b) {
    using emulator::Fiber;
    mma(c, a, b, 8,
        [](const Fiber* row, int upper, int k) { return __int_as_float((int)row[k % 4].a[k / 4 * 2 + upper]); },
        [](const Fiber* col, int k) { return __int_as_float((int)col[k % 4].b[k / 4]); });
}

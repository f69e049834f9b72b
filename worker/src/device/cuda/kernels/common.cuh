// What every kernel file begins with: names of types, reductions whose order is fixed, bf16, and tensor-core products.
//
// A file is compiled alone after this one, by NVRTC for a GPU and, in the tests, by a C++ compiler for the CPU: there `EMULATED` is
// defined, a block's threads are fibers, and the few functions with inline PTX come from the emulator.
//
// No kernel adds floats with atomics: the order of every sum depends on shapes alone (D-1).

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;

#define KERNEL extern "C" __global__ void
// A kernel with its number of threads, and how many blocks a multiprocessor should hold.
#define LAUNCH(...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__)
#define DEVICE static __device__ __forceinline__

// Row of an assignment whose expert is on another TP rank.
#define NOWHERE 0xffffffffu
// Experts of a token.
#define TOP_K 2

DEVICE float minus_infinity() { return __int_as_float((int)0xff800000u); }

// The sum over a warp, the same bits in every lane.
DEVICE float warp_sum(float v) {
    for (int mask = 16; mask > 0; mask >>= 1) v += __shfl_xor_sync(0xffffffffu, v, mask);
    return v;
}

DEVICE double warp_sum(double v) {
    for (int mask = 16; mask > 0; mask >>= 1) v += __shfl_xor_sync(0xffffffffu, v, mask);
    return v;
}

DEVICE u64 warp_sum(u64 v) {
    for (int mask = 16; mask > 0; mask >>= 1) v += __shfl_xor_sync(0xffffffffu, v, mask);
    return v;
}

// The larger one; NaN is passed over.
DEVICE float larger(float a, float b) { return b > a ? b : a; }

DEVICE float warp_max(float v) {
    for (int mask = 16; mask > 0; mask >>= 1) v = larger(v, __shfl_xor_sync(0xffffffffu, v, mask));
    return v;
}

// The sum over a block of up to 32 warps, the same bits in every thread. `parts (32)` is shared memory.
template <class T>
DEVICE T block_sum(T v, T* parts) {
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    T sum = 0;
    for (u32 w = 0; w < (blockDim.x + 31) / 32; w++) sum += parts[w];
    return sum;
}

DEVICE float block_max(float v, float* parts) {
    v = warp_max(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    float max = minus_infinity();
    for (u32 w = 0; w < (blockDim.x + 31) / 32; w++) max = larger(max, parts[w]);
    return max;
}

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

#ifndef EMULATED

// Two floats rounded to bf16 (nearest, ties to even), `lo` in the low half.
DEVICE u32 pack_bf16(float lo, float hi) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(hi), "f"(lo));
    return packed;
}

// `c (16, 8) += a (16, 16) b (16, 8)`, bf16 with f32 accumulation (PTX ISA, mma.m16n8k16). With g = lane / 4 and t = lane % 4, a lane
// has of a: rows g, g + 8, g, g + 8 at columns 2t, 2t, 2t + 8, 2t + 8 and the next; of b: rows 2t, 2t + 8 and the next at column g; of
// c: rows g, g, g + 8, g + 8 at columns 2t, 2t + 1, 2t, 2t + 1.
DEVICE void mma_bf16(float* c, const u32* a, const u32* b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// A float rounded to tf32, 10 bits of mantissa (nearest, ties away from 0).
DEVICE u32 to_tf32(float x) {
    u32 rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
    return rounded;
}

// `c (16, 8) += a (16, 8) b (8, 8)`, tf32 with f32 accumulation (PTX ISA, mma.m16n8k8). As `mma_bf16`, with one column of a or row of b
// where that has a pair: a lane has of a: rows g, g + 8, g, g + 8 at columns t, t, t + 4, t + 4; of b: rows t, t + 4 at column g.
DEVICE void mma_tf32(float* c, const u32* a, const u32* b) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]

#endif

// `c[j] (16, 8) += a (16, K) b (K, 8)` for one of `a`'s fragments and `NT` column tiles of b; `b` is stored by columns: column n of b
// is at `b + n * stride`, pairs of rows in one u32. Lanes as in `mma_bf16`.
template <int NT>
DEVICE void mma_row(float (*c)[4], const u32* a, const u32* b, int stride, int k_pair) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < NT; j++) {
        const u32* column = b + (j * 8 + g) * stride + k_pair + t;
        u32 fragment[2] = {column[0], column[4]};
        mma_bf16(c[j], a, fragment);
    }
}

// Fragment of rows `row..row + 16`, pairs of columns from `k_pair`, of a matrix stored by rows, `stride` pairs apart.
DEVICE void load_fragment(u32* a, const u32* matrix, int stride, int row, int k_pair) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const u32* at = matrix + (row + g) * stride + k_pair + t;
    a[0] = at[0];
    a[1] = at[8 * stride];
    a[2] = at[4];
    a[3] = at[8 * stride + 4];
}

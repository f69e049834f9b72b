// Products: of the rows of each expert with that expert's weights, and whole ones for what cuBLASLt does not take.
//
//   grouped y:   c (R, n) = x (R, k) w[e] (n, k)^T
//   grouped dx:  c (R, n) = dy (R, k) w[e] (k, n)
//   grouped dw:  dw[e] (m, n) += dy^T x over the expert's rows
//   matmul:      c (m, n) = alpha a b + beta c
//
// `offsets (experts + 1)` is read here, on the device: the host need not know how many tokens each expert got, so it never waits. A
// block computes one tile of the result, summing over k in order. `bf16` and `tf32` round the operands on their way into shared memory
// and multiply on tensor cores, two stages deep; `f32` is for parity.

// `element (row, k)` of an operand is `data[row * ld + k]` if its k is contiguous, else `data[k * ld + row]`; zeros outside of
// `rows` and `depth`.
struct Operand {
    const float* data;
    u32 ld, rows, depth;
};

template <bool K_CONTIGUOUS>
DEVICE float element(const Operand& x, u32 row, u32 k) {
    if (row >= x.rows || k >= x.depth) return 0.0f;
    return K_CONTIGUOUS ? x.data[(u64)row * x.ld + k] : x.data[(u64)k * x.ld + row];
}

// The result's part, `alpha * product + beta * old`: rows of `ld` elements, only the first `rows` and `cols` exist.
struct Output {
    float* data;
    u32 ld, rows, cols;
    float alpha, beta;
};

DEVICE void put(const Output& c, u32 row, u32 col, float value) {
    if (row >= c.rows || col >= c.cols) return;
    float* at = c.data + (u64)row * c.ld + col;
    *at = c.beta == 0.0f ? c.alpha * value : c.alpha * value + c.beta * *at;
}

// Expert and rows of a tile of `height` rows, counted over all experts; false past the last one. The whole block agrees.
DEVICE bool find_tile(const u32* offsets, u32 experts, u32 height, u32 tile, u32& expert, u32& first, u32& rows) {
    for (u32 e = 0; e < experts; e++) {
        u32 start = offsets[e], of_expert = offsets[e + 1] - start, tiles = (of_expert + height - 1) / height;
        if (tile < tiles) {
            expert = e;
            first = start + tile * height;
            rows = of_expert - tile * height < height ? of_expert - tile * height : height;
            return true;
        }
        tile -= tiles;
    }
    return false;
}

// ---------------------------------------------------------------- f32: tiles of 64 by 64 by 16, 256 threads, 4 by 4 each

#define F32_TILE 64
#define F32_DEPTH 16
#define F32_STRIDE 68

template <bool K_CONTIGUOUS>
DEVICE void stage_f32(float* to, const Operand& x, u32 row0, u32 k0) {
    for (u32 i = threadIdx.x; i < F32_TILE * F32_DEPTH; i += 256) {
        u32 row = K_CONTIGUOUS ? i / F32_DEPTH : i % F32_TILE, k = K_CONTIGUOUS ? i % F32_DEPTH : i / F32_TILE;
        to[k * F32_STRIDE + row] = element<K_CONTIGUOUS>(x, row0 + row, k0 + k);
    }
}

template <bool A_CONTIGUOUS, bool B_CONTIGUOUS>
DEVICE void product_f32(const Operand& a, const Operand& b, const Output& c, u32 row0, u32 col0) {
    __shared__ float as[F32_DEPTH * F32_STRIDE], bs[F32_DEPTH * F32_STRIDE];
    u32 r = threadIdx.x / 16 * 4, q = threadIdx.x % 16 * 4;
    float sums[4][4] = {};
    for (u32 k0 = 0; k0 < a.depth; k0 += F32_DEPTH) {
        __syncthreads();
        stage_f32<A_CONTIGUOUS>(as, a, row0, k0);
        stage_f32<B_CONTIGUOUS>(bs, b, col0, k0);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < F32_DEPTH; k++) {
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sums[i][j] += as[k * F32_STRIDE + r + i] * bs[k * F32_STRIDE + q + j];
        }
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) put(c, row0 + r + i, col0 + q + j, sums[i][j]);
}

// ---------------------------------------------------------------- tensor cores: tiles of 128 by 128 by 16 units, 8 warps, 64 by 32 each

// A unit of shared memory is 4 bytes, a pair of bf16 or one tf32; fragments have the same units in both, so only two functions differ.
struct Bf16 {
    static const int PER_UNIT = 2;
    DEVICE u32 pack(const float* v) { return pack_bf16(v[0], v[1]); }
    DEVICE void mma(float* c, const u32* a, const u32* b) { mma_bf16(c, a, b); }
};

struct Tf32 {
    static const int PER_UNIT = 1;
    DEVICE u32 pack(const float* v) { return to_tf32(v[0]); }
    DEVICE void mma(float* c, const u32* a, const u32* b) { mma_tf32(c, a, b); }
};

#define TILE 128
#define UNITS 16
// Units in a row of a staged tile: 16, and 4 more so that a fragment's loads hit 32 banks.
#define STRIDE 20

// Units of four floats, and groups of four floats in a row of a tile.
template <class Kind>
struct Groups {
    static const int SIZE = 4 / Kind::PER_UNIT, NUM = UNITS / SIZE;
};

// This thread's 8 units of a tile, on their way from device to shared memory.
template <class Kind, bool K_CONTIGUOUS>
DEVICE void fetch(u32* units, const Operand& x, u32 row0, u32 k0) {
    if (K_CONTIGUOUS) {
        const int SIZE = Groups<Kind>::SIZE, NUM = Groups<Kind>::NUM;
        bool vectors = x.ld % 4 == 0 && (u64)x.data % 16 == 0;
#pragma unroll
        for (int i = 0; i < 8 / SIZE; i++) {
            u32 group = i * 256 + threadIdx.x, row = row0 + group / NUM, k = k0 + group % NUM * 4;
            float v[4];
            if (vectors && row < x.rows && k + 4 <= x.depth) {
                *(float4*)v = *(const float4*)(x.data + (u64)row * x.ld + k);
            } else {
#pragma unroll
                for (int j = 0; j < 4; j++) v[j] = element<true>(x, row, k + j);
            }
#pragma unroll
            for (int j = 0; j < SIZE; j++) units[SIZE * i + j] = Kind::pack(v + j * Kind::PER_UNIT);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u32 unit = i * 256 + threadIdx.x, row = row0 + unit % TILE, k = k0 + unit / TILE * Kind::PER_UNIT;
            float v[Kind::PER_UNIT];
#pragma unroll
            for (int j = 0; j < Kind::PER_UNIT; j++) v[j] = element<false>(x, row, k + j);
            units[i] = Kind::pack(v);
        }
    }
}

// Into `to (TILE, STRIDE)`.
template <class Kind, bool K_CONTIGUOUS>
DEVICE void stage(u32* to, const u32* units) {
    const int SIZE = Groups<Kind>::SIZE, NUM = Groups<Kind>::NUM;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u32 at = (K_CONTIGUOUS ? i / SIZE : i) * 256 + threadIdx.x;
        u32 row = K_CONTIGUOUS ? at / NUM : at % TILE, unit = K_CONTIGUOUS ? at % NUM * SIZE + i % SIZE : at / TILE;
        to[row * STRIDE + unit] = units[i];
    }
}

template <class Kind, bool A_CONTIGUOUS, bool B_CONTIGUOUS>
DEVICE void product_mma(const Operand& a, const Operand& b, const Output& c, u32 row0, u32 col0) {
    __shared__ u32 as[2][TILE * STRIDE], bs[2][TILE * STRIDE];
    const u32 DEPTH = UNITS * Kind::PER_UNIT;
    u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    u32 warp_row = warp / 4 * 64, warp_col = warp % 4 * 32;
    float sums[4][4][4] = {};
    u32 a_units[8], b_units[8];
    fetch<Kind, A_CONTIGUOUS>(a_units, a, row0, 0);
    fetch<Kind, B_CONTIGUOUS>(b_units, b, col0, 0);
    stage<Kind, A_CONTIGUOUS>(as[0], a_units);
    stage<Kind, B_CONTIGUOUS>(bs[0], b_units);
    __syncthreads();
    int buffer = 0;
    for (u32 k0 = 0; k0 < a.depth; k0 += DEPTH) {
        bool more = k0 + DEPTH < a.depth;
        if (more) {
            fetch<Kind, A_CONTIGUOUS>(a_units, a, row0, k0 + DEPTH);
            fetch<Kind, B_CONTIGUOUS>(b_units, b, col0, k0 + DEPTH);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 b_fragments[4][2];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const u32* column = bs[buffer] + (warp_col + j * 8 + g) * STRIDE + half * 8 + t;
                b_fragments[j][0] = column[0];
                b_fragments[j][1] = column[4];
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 fragment[4];
                load_fragment(fragment, as[buffer], STRIDE, warp_row + i * 16, half * 8);
#pragma unroll
                for (int j = 0; j < 4; j++) Kind::mma(sums[i][j], fragment, b_fragments[j]);
            }
        }
        if (more) {
            stage<Kind, A_CONTIGUOUS>(as[buffer ^ 1], a_units);
            stage<Kind, B_CONTIGUOUS>(bs[buffer ^ 1], b_units);
        }
        __syncthreads();
        buffer ^= 1;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int k = 0; k < 4; k++)
                put(c, row0 + warp_row + i * 16 + g + k / 2 * 8, col0 + warp_col + j * 8 + 2 * t + k % 2, sums[i][j][k]);
}

// The ways to multiply, by the names of their kernels.
template <bool A_CONTIGUOUS, bool B_CONTIGUOUS>
DEVICE void product_bf16(const Operand& a, const Operand& b, const Output& c, u32 row0, u32 col0) {
    product_mma<Bf16, A_CONTIGUOUS, B_CONTIGUOUS>(a, b, c, row0, col0);
}

template <bool A_CONTIGUOUS, bool B_CONTIGUOUS>
DEVICE void product_tf32(const Operand& a, const Operand& b, const Output& c, u32 row0, u32 col0) {
    product_mma<Tf32, A_CONTIGUOUS, B_CONTIGUOUS>(a, b, c, row0, col0);
}

// ---------------------------------------------------------------- the kernels: grid (tiles of n, tiles of rows), dw (n, m, experts)

#define GROUPED(kind, height)                                                                                                         \
    LAUNCH(256, 2) grouped_##kind##_y(const u32* offsets, const float* x, const float* w, float* y, u32 experts, u32 k, u32 n) {              \
        u32 expert, first, rows;                                                                                                      \
        if (!find_tile(offsets, experts, height, blockIdx.y, expert, first, rows)) return;                                            \
        Operand a = {x + (u64)first * k, k, rows, k}, b = {w + (u64)expert * n * k, k, n, k};                                         \
        Output c = {y + (u64)first * n, n, rows, n, 1.0f, 0.0f};                                                                           \
        product_##kind<true, true>(a, b, c, 0, blockIdx.x * height);                                                                  \
    }                                                                                                                                 \
    LAUNCH(256, 2) grouped_##kind##_dx(const u32* offsets, const float* dy, const float* w, float* dx, u32 experts, u32 k, u32 n) {           \
        u32 expert, first, rows;                                                                                                      \
        if (!find_tile(offsets, experts, height, blockIdx.y, expert, first, rows)) return;                                            \
        Operand a = {dy + (u64)first * k, k, rows, k}, b = {w + (u64)expert * n * k, n, n, k};                                        \
        Output c = {dx + (u64)first * n, n, rows, n, 1.0f, 0.0f};                                                                          \
        product_##kind<true, false>(a, b, c, 0, blockIdx.x * height);                                                                 \
    }                                                                                                                                 \
    LAUNCH(256, 2) grouped_##kind##_dw(const u32* offsets, const float* dy, const float* x, float* dw, u32 m, u32 n) {                        \
        u32 expert = blockIdx.z, first = offsets[expert], rows = offsets[expert + 1] - first;                                         \
        if (rows == 0) return;                                                                                                        \
        Operand a = {dy + (u64)first * m, m, m, rows}, b = {x + (u64)first * n, n, n, rows};                                          \
        Output c = {dw + (u64)expert * m * n, n, m, n, 1.0f, 1.0f};                                                                         \
        product_##kind<false, false>(a, b, c, blockIdx.y * height, blockIdx.x * height);                                              \
    }

GROUPED(f32, F32_TILE)
GROUPED(bf16, TILE)
GROUPED(tf32, TILE)

// Operand a `(m, k)` is `n`ot transposed or `t`ransposed in memory, then b `(k, n)`.
#define MATMUL(kind, height, layout, a_contiguous, b_contiguous)                                                                      \
    LAUNCH(256, 2) matmul_##kind##_##layout(const float* a, const float* b, float* c, u32 m, u32 n, u32 k, u32 lda, u32 ldb,          \
                                            float alpha, float beta) {                                                                \
        product_##kind<a_contiguous, b_contiguous>({a, lda, m, k}, {b, ldb, n, k}, {c, n, m, n, alpha, beta}, blockIdx.y * height,    \
                                                   blockIdx.x * height);                                                              \
    }

MATMUL(f32, F32_TILE, nn, true, false)
MATMUL(f32, F32_TILE, nt, true, true)
MATMUL(f32, F32_TILE, tn, false, false)
MATMUL(f32, F32_TILE, tt, false, true)
MATMUL(bf16, TILE, nn, true, false)
MATMUL(bf16, TILE, nt, true, true)
MATMUL(bf16, TILE, tn, false, false)
MATMUL(bf16, TILE, tt, false, true)
MATMUL(tf32, TILE, nn, true, false)
MATMUL(tf32, TILE, nt, true, true)
MATMUL(tf32, TILE, tn, false, false)
MATMUL(tf32, TILE, tt, false, true)

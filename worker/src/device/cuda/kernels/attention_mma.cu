// Causal attention on tensor cores: operands in bf16, sums, softmax and results in f32; scores exist only in registers (Dao,
// FlashAttention-2). Four warps; a warp has 16 rows of the block's 64. `D` is the head's dims rounded up to 32, 64 or 128; what is
// past `dim` is zeros. Fragments are laid out as in `mma_bf16`: g = lane / 4 is a row, t = lane % 4 a pair of columns.
//
//   forward, dq: a block has 64 queries of a head and goes over the keys by 64, up to the diagonal; grid (tiles, heads, batch)
//   cached:      the same, where the queries are those heads of a token that share a key/value head
//   dkv:         a block has 64 keys of a key/value head and goes over its query heads and their queries by 32, from the
//                diagonal on; grid (tiles, kv_heads, batch). Nobody else adds to these keys, so the order is fixed.

#define LOG2_E 1.44269504088896340736f

// Pairs in a row of a tile of `n` columns: 4 more than needed, so that a fragment's loads hit 32 banks.
#define STRIDE_OF(n) ((n) / 2 + 4)

DEVICE float at_or_zero(const float* row, u32 col, u32 dim, bool exists) { return exists && col < dim ? row[col] : 0.0f; }

// `tile (ROWS, STRIDE_OF(D))` = rows `first..` of a head, rounded to bf16.
template <int ROWS, int D>
DEVICE void load_rows(u32* tile, const float* from, u64 row_len, u32 first, u32 seq, u32 dim) {
    for (u32 i = threadIdx.x; i < ROWS * D / 2; i += 128) {
        u32 row = i / (D / 2), pair = i % (D / 2);
        bool exists = first + row < seq;
        const float* x = from + (first + row) * row_len;
        tile[row * STRIDE_OF(D) + pair] = pack_bf16(at_or_zero(x, 2 * pair, dim, exists), at_or_zero(x, 2 * pair + 1, dim, exists));
    }
}

// `tile (D, STRIDE_OF(ROWS))`: the same, transposed.
template <int ROWS, int D>
DEVICE void load_columns(u32* tile, const float* from, u64 row_len, u32 first, u32 seq, u32 dim) {
    for (u32 i = threadIdx.x; i < ROWS / 2 * D; i += 128) {
        u32 col = i % D, pair = i / D, row = first + 2 * pair;
        const float* x = from + row * row_len;
        tile[col * STRIDE_OF(ROWS) + pair] =
            pack_bf16(at_or_zero(x, col, dim, row < seq), at_or_zero(x + row_len, col, dim, row + 1 < seq));
    }
}

// Rows 16 of a product's result as the left operand of the next: columns 16 i to 16 i + 15.
DEVICE void to_fragment(u32* a, const float (*c)[4], int i) {
    a[0] = pack_bf16(c[2 * i][0], c[2 * i][1]);
    a[1] = pack_bf16(c[2 * i][2], c[2 * i][3]);
    a[2] = pack_bf16(c[2 * i + 1][0], c[2 * i + 1][1]);
    a[3] = pack_bf16(c[2 * i + 1][2], c[2 * i + 1][3]);
}

// Writes this warp's 16 rows, each times its factor; rows past `seq` and columns past `dim` do not exist.
template <int D>
DEVICE void store_rows(float* to, u64 row_len, u32 first, u32 seq, u32 dim, const float (*c)[4], float factor0, float factor1) {
    u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < D / 8; j++)
#pragma unroll
        for (int k = 0; k < 4; k++) {
            u32 row = first + g + k / 2 * 8, col = j * 8 + 2 * t + k % 2;
            if (row < seq && col < dim) to[row * row_len + col] = c[j][k] * (k < 2 ? factor0 : factor1);
        }
}

DEVICE float quad_max(float v) {
    v = larger(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return larger(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

DEVICE float quad_sum(float v) {
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

// Of two queries, in rows g and g + 8 of a warp's 16: the largest score so far, in units of log 2, and the sum of what is relative to it.
struct Softmax {
    float max0, max1, sum0, sum1;
};

// Of a tile's 64 queries, of which a thread's two see the keys up to `seen0` and `seen1`: `sums` of the values, to be divided by those of
// the softmax.
template <int D>
DEVICE Softmax attend(const Tile& tile, u32 seen0, u32 seen1, u32 dim, float scale, float (*sums)[4]) {
    DYNAMIC_SHARED(u32, shared);
    u32 *ks = shared, *vs = ks + 64 * STRIDE_OF(D);
    u32 warp = threadIdx.x / 32, t = threadIdx.x % 4;
    load_rows<64, D>(ks, tile.q, tile.q_len, tile.first, tile.num_queries, dim);
    __syncthreads();
    u32 q[D / 16][4];
#pragma unroll
    for (int i = 0; i < D / 16; i++) load_fragment(q[i], ks, STRIDE_OF(D), warp * 16, i * 8);

    float max0 = minus_infinity(), max1 = max0, sum0 = 0, sum1 = 0;
    float to_log2 = scale * LOG2_E;
    for (u32 key0 = tile.start; key0 <= tile.last; key0 += 64) {
        __syncthreads();
        load_rows<64, D>(ks, tile.k, tile.kv_len, key0, tile.num_keys, dim);
        load_columns<64, D>(vs, tile.v, tile.kv_len, key0, tile.num_keys, dim);
        __syncthreads();
        float s[8][4] = {};
#pragma unroll
        for (int i = 0; i < D / 16; i++) mma_row<8>(s, q[i], ks, STRIDE_OF(D), i * 8);
        float found0 = max0, found1 = max1;
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int k = 0; k < 4; k++) {
                u32 key = key0 + j * 8 + 2 * t + k % 2;
                bool visible = key <= (k < 2 ? seen0 : seen1);
                s[j][k] = visible ? s[j][k] * to_log2 : minus_infinity();
                if (k < 2) found0 = larger(found0, s[j][k]);
                else found1 = larger(found1, s[j][k]);
            }
        found0 = quad_max(found0);
        found1 = quad_max(found1);
        float rescale0 = exp2f(max0 - found0), rescale1 = exp2f(max1 - found1), part0 = 0, part1 = 0;
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int k = 0; k < 4; k++) {
                s[j][k] = exp2f(s[j][k] - (k < 2 ? found0 : found1));
                if (k < 2) part0 += s[j][k];
                else part1 += s[j][k];
            }
        sum0 = sum0 * rescale0 + quad_sum(part0);
        sum1 = sum1 * rescale1 + quad_sum(part1);
        max0 = found0;
        max1 = found1;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            sums[j][0] *= rescale0;
            sums[j][1] *= rescale0;
            sums[j][2] *= rescale1;
            sums[j][3] *= rescale1;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 p[4];
            to_fragment(p, s, i);
            mma_row<D / 8>(sums, p, vs, STRIDE_OF(64), i * 8);
        }
    }
    return {max0, max1, sum0, sum1};
}

template <int D>
DEVICE void forward(const float* qkv, float* out, float* lse, const u32* bounds, u32 seq, u32 heads, u32 kv_heads, u32 dim,
                    float scale) {
    u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    // The last tiles see the most keys: they go first.
    u32 first = (gridDim.x - 1 - blockIdx.x) * 64, row0 = first + warp * 16 + g, row1 = row0 + 8;
    Head head = head_of(qkv, blockIdx.z, blockIdx.y, seq, heads, kv_heads, dim);
    Tile tile = {head.q, head.k, head.v, head.row_len, head.row_len, first, seq, text_start(bounds, blockIdx.z, seq, first), first, seq};
    float sums[D / 8][4] = {};
    Softmax s = attend<D>(tile, row0, row1, dim, scale, sums);
    store_rows<D>(out + head.first_out, head.out_len, first + warp * 16, seq, dim, sums, 1.0f / s.sum0, 1.0f / s.sum1);
    if (t == 0 && row0 < seq) lse[head.first_lse + row0] = s.max0 / LOG2_E + logf(s.sum0);
    if (t == 0 && row1 < seq) lse[head.first_lse + row1] = s.max1 / LOG2_E + logf(s.sum1);
}

template <int D>
DEVICE void cached(const float* qkv, const float* cache, const u32* places, float* out, u32 seq, u32 heads, u32 kv_heads, u32 dim,
                   float scale) {
    u32 first = blockIdx.z * 64;
    Tile tile = cached_tile(qkv, cache, places, first, seq, heads, kv_heads, dim);
    float sums[D / 8][4] = {};
    Softmax s = attend<D>(tile, tile.last, tile.last, dim, scale, sums);
    float* to = out + cached_out(heads, kv_heads, dim);
    store_rows<D>(to, dim, first + threadIdx.x / 32 * 16, tile.num_queries, dim, sums, 1.0f / s.sum0, 1.0f / s.sum1);
}

template <int D>
DEVICE void backward_q(const float* qkv, const float* lse, const float* delta, const float* dout, float* dqkv, const u32* bounds,
                       u32 seq, u32 heads, u32 kv_heads, u32 dim, float scale) {
    DYNAMIC_SHARED(u32, shared);
    const int tile = 64 * STRIDE_OF(D);
    u32 *qs = shared, *os = qs + tile, *ks = os + tile, *vs = ks + tile, *k_columns = vs + tile;
    u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    u32 first = (gridDim.x - 1 - blockIdx.x) * 64, row0 = first + warp * 16 + g, row1 = row0 + 8;
    Head head = head_of(qkv, blockIdx.z, blockIdx.y, seq, heads, kv_heads, dim);
    load_rows<64, D>(qs, head.q, head.row_len, first, seq, dim);
    load_rows<64, D>(os, dout + head.first_out, head.out_len, first, seq, dim);
    float lse0 = row0 < seq ? lse[head.first_lse + row0] : 0.0f, lse1 = row1 < seq ? lse[head.first_lse + row1] : 0.0f;
    float delta0 = row0 < seq ? delta[head.first_lse + row0] : 0.0f, delta1 = row1 < seq ? delta[head.first_lse + row1] : 0.0f;
    float sums[D / 8][4] = {}, to_log2 = scale * LOG2_E;
    for (u32 key0 = text_start(bounds, blockIdx.z, seq, first); key0 <= first; key0 += 64) {
        __syncthreads();
        load_rows<64, D>(ks, head.k, head.row_len, key0, seq, dim);
        load_rows<64, D>(vs, head.v, head.row_len, key0, seq, dim);
        load_columns<64, D>(k_columns, head.k, head.row_len, key0, seq, dim);
        __syncthreads();
        float s[8][4] = {}, dp[8][4] = {};
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            u32 a[4];
            load_fragment(a, qs, STRIDE_OF(D), warp * 16, i * 8);
            mma_row<8>(s, a, ks, STRIDE_OF(D), i * 8);
            load_fragment(a, os, STRIDE_OF(D), warp * 16, i * 8);
            mma_row<8>(dp, a, vs, STRIDE_OF(D), i * 8);
        }
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int k = 0; k < 4; k++) {
                u32 key = key0 + j * 8 + 2 * t + k % 2, row = k < 2 ? row0 : row1;
                float p = key <= row && row < seq ? exp2f(s[j][k] * to_log2 - (k < 2 ? lse0 : lse1) * LOG2_E) : 0.0f;
                s[j][k] = p * (dp[j][k] - (k < 2 ? delta0 : delta1)) * scale;
            }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 a[4];
            to_fragment(a, s, i);
            mma_row<D / 8>(sums, a, k_columns, STRIDE_OF(64), i * 8);
        }
    }
    store_rows<D>(dqkv + (head.q - qkv), head.row_len, first + warp * 16, seq, dim, sums, 1.0f, 1.0f);
}

template <int D>
DEVICE void backward_kv(const float* qkv, const float* lse, const float* delta, const float* dout, float* dqkv, const u32* bounds,
                        u32 seq, u32 heads, u32 kv_heads, u32 dim, float scale) {
    DYNAMIC_SHARED(u32, shared);
    u32 *ks = shared, *vs = ks + 64 * STRIDE_OF(D), *qs = vs + 64 * STRIDE_OF(D), *os = qs + 32 * STRIDE_OF(D);
    u32 *q_columns = os + 32 * STRIDE_OF(D), *o_columns = q_columns + D * STRIDE_OF(32);
    u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    u32 first = blockIdx.x * 64, key_row = first + warp * 16 + g, group = heads / kv_heads;
    u32 end = text_end(bounds, blockIdx.z, seq, first);
    float dk[D / 8][4] = {}, dv[D / 8][4] = {}, to_log2 = scale * LOG2_E;
    Head head = head_of(qkv, blockIdx.z, blockIdx.y * group, seq, heads, kv_heads, dim);
    load_rows<64, D>(ks, head.k, head.row_len, first, seq, dim);
    load_rows<64, D>(vs, head.v, head.row_len, first, seq, dim);
    for (u32 h = blockIdx.y * group; h < (blockIdx.y + 1) * group; h++) {
        head = head_of(qkv, blockIdx.z, h, seq, heads, kv_heads, dim);
        for (u32 query0 = first; query0 < end; query0 += 32) {
            __syncthreads();
            load_rows<32, D>(qs, head.q, head.row_len, query0, seq, dim);
            load_rows<32, D>(os, dout + head.first_out, head.out_len, query0, seq, dim);
            load_columns<32, D>(q_columns, head.q, head.row_len, query0, seq, dim);
            load_columns<32, D>(o_columns, dout + head.first_out, head.out_len, query0, seq, dim);
            __syncthreads();
            // Rows are keys, columns queries.
            float s[4][4] = {}, dp[4][4] = {};
#pragma unroll 2
            for (int i = 0; i < D / 16; i++) {
                u32 a[4];
                load_fragment(a, ks, STRIDE_OF(D), warp * 16, i * 8);
                mma_row<4>(s, a, qs, STRIDE_OF(D), i * 8);
                load_fragment(a, vs, STRIDE_OF(D), warp * 16, i * 8);
                mma_row<4>(dp, a, os, STRIDE_OF(D), i * 8);
            }
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    u32 query = query0 + j * 8 + 2 * t + k % 2, key = key_row + k / 2 * 8;
                    bool visible = key <= query && query < seq;
                    float p = visible ? exp2f(s[j][k] * to_log2 - lse[head.first_lse + query] * LOG2_E) : 0.0f;
                    s[j][k] = p;
                    dp[j][k] = visible ? p * (dp[j][k] - delta[head.first_lse + query]) * scale : 0.0f;
                }
#pragma unroll
            for (int i = 0; i < 2; i++) {
                u32 a[4];
                to_fragment(a, s, i);
                mma_row<D / 8>(dv, a, o_columns, STRIDE_OF(32), i * 8);
                to_fragment(a, dp, i);
                mma_row<D / 8>(dk, a, q_columns, STRIDE_OF(32), i * 8);
            }
        }
    }
    store_rows<D>(dqkv + (head.k - qkv), head.row_len, first + warp * 16, seq, dim, dk, 1.0f, 1.0f);
    store_rows<D>(dqkv + (head.v - qkv), head.row_len, first + warp * 16, seq, dim, dv, 1.0f, 1.0f);
}

#define BACKWARD const float *qkv, const float *lse, const float *delta, const float *dout, float *dqkv, const u32 *bounds
#define DIMS u32 seq, u32 heads, u32 kv_heads, u32 dim, float scale

#define ATTENTION(d)                                                                                                                  \
    LAUNCH(128) attention_bf16_##d(const float* qkv, float* out, float* lse, const u32* bounds, DIMS) {                               \
        forward<d>(qkv, out, lse, bounds, seq, heads, kv_heads, dim, scale);                                                          \
    }                                                                                                                                 \
    LAUNCH(128) attention_cached_bf16_##d(const float* qkv, const float* cache, const u32* places, float* out, DIMS) {                \
        cached<d>(qkv, cache, places, out, seq, heads, kv_heads, dim, scale);                                                         \
    }                                                                                                                                 \
    LAUNCH(128) attention_dq_bf16_##d(BACKWARD, DIMS) {                                                                               \
        backward_q<d>(qkv, lse, delta, dout, dqkv, bounds, seq, heads, kv_heads, dim, scale);                                         \
    }                                                                                                                                 \
    LAUNCH(128) attention_dkv_bf16_##d(BACKWARD, DIMS) {                                                                              \
        backward_kv<d>(qkv, lse, delta, dout, dqkv, bounds, seq, heads, kv_heads, dim, scale);                                        \
    }

ATTENTION(32)
ATTENTION(64)
ATTENTION(128)

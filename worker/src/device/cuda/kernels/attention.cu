// Causal attention with grouped key/value heads in f32, for parity and for long heads; scores exist only as tiles in shared memory
// (Dao et al., FlashAttention). 256 threads, tiles of 32 queries by 32 keys; eight lanes share a row of a tile: lane c has columns
// c, c + 8, c + 16, c + 24 of it and dims c, c + 8, ... of the row's result. Grids: (tiles, heads, batch).

#define ROWS 32

// `tile (ROWS, dim + 1)` = rows `first..` of a matrix, zeros past `seq`.
DEVICE void load_rows(float* tile, const float* from, u64 row_len, u32 first, u32 seq, u32 dim) {
    for (u32 i = threadIdx.x; i < ROWS * dim; i += 256) {
        u32 row = i / dim, col = i % dim;
        tile[row * (dim + 1) + col] = first + row < seq ? from[(first + row) * row_len + col] : 0.0f;
    }
}

DEVICE float row_dot(const float* a, const float* b, u32 dim) {
    float sum = 0;
#pragma unroll 4
    for (u32 i = 0; i < dim; i++) sum += a[i] * b[i];
    return sum;
}

// The largest and the sum over the eight lanes of a row.
DEVICE float row_max(float v) {
    for (int mask = 4; mask > 0; mask >>= 1) v = larger(v, __shfl_xor_sync(0xffffffffu, v, mask));
    return v;
}

DEVICE float row_sum(float v) {
    for (int mask = 4; mask > 0; mask >>= 1) v += __shfl_xor_sync(0xffffffffu, v, mask);
    return v;
}

// A warp a (token, head): `delta (batch, heads, seq)` = `out . dout`.
KERNEL attention_delta(const float* out, const float* dout, float* delta, u32 batch, u32 seq, u32 heads, u32 dim) {
    u64 i = (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (i >= (u64)batch * seq * heads) return;
    u64 token = i / heads, head = i % heads, at = i * dim;
    float sum = 0;
    for (u32 k = threadIdx.x % 32; k < dim; k += 32) sum += out[at + k] * dout[at + k];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[(token / seq * heads + head) * seq + token % seq] = sum;
}

// Of the query in row `threadIdx.x / 8` of a tile, which sees the keys up to `seen`: `sums` of the values, to be divided by `sum`; `max` is
// the largest score.
template <int MOST>
DEVICE void attend(const Tile& tile, u32 seen, u32 dim, float scale, float* sums, float& max, float& sum) {
    DYNAMIC_SHARED(float, shared);
    u32 width = dim + 1;
    float *qs = shared, *ks = qs + ROWS * width, *vs = ks + ROWS * width, *ps = vs + ROWS * width;
    u32 r = threadIdx.x / 8, c = threadIdx.x % 8;
    load_rows(qs, tile.q, tile.q_len, tile.first, tile.num_queries, dim);
    for (u32 key0 = tile.start; key0 <= tile.last; key0 += ROWS) {
        __syncthreads();
        load_rows(ks, tile.k, tile.kv_len, key0, tile.num_keys, dim);
        load_rows(vs, tile.v, tile.kv_len, key0, tile.num_keys, dim);
        __syncthreads();
        float scores[4], found = max;
        for (int j = 0; j < 4; j++) {
            u32 key = c + 8 * j;
            scores[j] = key0 + key <= seen ? scale * row_dot(qs + r * width, ks + key * width, dim) : minus_infinity();
            found = larger(found, scores[j]);
        }
        found = row_max(found);
        float rescale = expf(max - found), part = 0;
        for (int j = 0; j < 4; j++) {
            float p = expf(scores[j] - found);
            part += p;
            ps[r * (ROWS + 1) + c + 8 * j] = p;
        }
        sum = sum * rescale + row_sum(part);
        max = found;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < MOST / 8; i++) {
            if (c + 8 * i < dim) {
                float s = sums[i] * rescale;
#pragma unroll 4
                for (int key = 0; key < ROWS; key++) s += ps[r * (ROWS + 1) + key] * vs[key * width + c + 8 * i];
                sums[i] = s;
            }
        }
        __syncwarp();
    }
}

template <int MOST>
DEVICE void forward(const float* qkv, float* out, float* lse, const u32* bounds, u32 seq, u32 heads, u32 kv_heads, u32 dim,
                    float scale) {
    // The last tiles see the most keys: they go first.
    u32 first = (gridDim.x - 1 - blockIdx.x) * ROWS, c = threadIdx.x % 8, query = first + threadIdx.x / 8;
    Head head = head_of(qkv, blockIdx.z, blockIdx.y, seq, heads, kv_heads, dim);
    Tile tile = {head.q, head.k, head.v, head.row_len, head.row_len, first, seq, text_start(bounds, blockIdx.z, seq, first), first, seq};
    float sums[MOST / 8] = {}, max = minus_infinity(), sum = 0;
    attend<MOST>(tile, query, dim, scale, sums, max, sum);
    if (query >= seq) return;
#pragma unroll
    for (int i = 0; i < MOST / 8; i++) {
        if (c + 8 * i < dim) out[head.first_out + query * head.out_len + c + 8 * i] = sums[i] / sum;
    }
    if (c == 0) lse[head.first_lse + query] = max + logf(sum);
}

// A block a row: its keys and values go to its place in `cache (batch, seq, 2 * kv_heads * dim)`; `places (2, rows)`.
KERNEL cache_rows(const float* qkv, const u32* places, float* cache, u32 seq, u32 heads, u32 kv_heads, u32 dim) {
    u64 row_len = (u64)(heads + 2 * kv_heads) * dim, kv_len = (u64)2 * kv_heads * dim;
    const float* from = qkv + blockIdx.x * row_len + heads * dim;
    float* to = cache + ((u64)places[blockIdx.x] * seq + places[gridDim.x + blockIdx.x]) * kv_len;
    for (u32 i = threadIdx.x; i < kv_len; i += blockDim.x) to[i] = from[i];
}

template <int MOST>
DEVICE void cached(const float* qkv, const float* cache, const u32* places, float* out, u32 seq, u32 heads, u32 kv_heads, u32 dim,
                   float scale) {
    u32 first = blockIdx.z * ROWS, c = threadIdx.x % 8, query = first + threadIdx.x / 8;
    Tile tile = cached_tile(qkv, cache, places, first, seq, heads, kv_heads, dim);
    float sums[MOST / 8] = {}, max = minus_infinity(), sum = 0;
    attend<MOST>(tile, tile.last, dim, scale, sums, max, sum);
    if (query >= tile.num_queries) return;
    float* to = out + cached_out(heads, kv_heads, dim) + query * dim;
#pragma unroll
    for (int i = 0; i < MOST / 8; i++) {
        if (c + 8 * i < dim) to[c + 8 * i] = sums[i] / sum;
    }
}

template <int MOST>
DEVICE void backward_q(const float* qkv, const float* lse, const float* delta, const float* dout, float* dqkv, const u32* bounds,
                       u32 seq, u32 heads, u32 kv_heads, u32 dim, float scale) {
    DYNAMIC_SHARED(float, shared);
    u32 width = dim + 1;
    float *qs = shared, *os = qs + ROWS * width, *ks = os + ROWS * width, *vs = ks + ROWS * width, *ds = vs + ROWS * width;
    u32 first = (gridDim.x - 1 - blockIdx.x) * ROWS, r = threadIdx.x / 8, c = threadIdx.x % 8, query = first + r;
    Head head = head_of(qkv, blockIdx.z, blockIdx.y, seq, heads, kv_heads, dim);
    load_rows(qs, head.q, head.row_len, first, seq, dim);
    load_rows(os, dout + head.first_out, head.out_len, first, seq, dim);
    float log_sum = query < seq ? lse[head.first_lse + query] : 0.0f, mean = query < seq ? delta[head.first_lse + query] : 0.0f;
    float sums[MOST / 8] = {};
    for (u32 key0 = text_start(bounds, blockIdx.z, seq, first); key0 <= first; key0 += ROWS) {
        __syncthreads();
        load_rows(ks, head.k, head.row_len, key0, seq, dim);
        load_rows(vs, head.v, head.row_len, key0, seq, dim);
        __syncthreads();
        for (int j = 0; j < 4; j++) {
            u32 key = c + 8 * j;
            float d = 0;
            if (key0 + key <= query && query < seq) {
                float p = expf(scale * row_dot(qs + r * width, ks + key * width, dim) - log_sum);
                d = p * (row_dot(os + r * width, vs + key * width, dim) - mean) * scale;
            }
            ds[r * (ROWS + 1) + key] = d;
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < MOST / 8; i++) {
            if (c + 8 * i < dim) {
                float s = sums[i];
#pragma unroll 4
                for (int key = 0; key < ROWS; key++) s += ds[r * (ROWS + 1) + key] * ks[key * width + c + 8 * i];
                sums[i] = s;
            }
        }
        __syncwarp();
    }
    if (query >= seq) return;
    float* to = dqkv + (head.q - qkv) + query * head.row_len;
#pragma unroll
    for (int i = 0; i < MOST / 8; i++) {
        if (c + 8 * i < dim) to[c + 8 * i] = sums[i];
    }
}

// Grid (tiles of keys, kv_heads, batch): the query heads of a key/value head one after the other.
template <int MOST>
DEVICE void backward_kv(const float* qkv, const float* lse, const float* delta, const float* dout, float* dqkv, const u32* bounds,
                        u32 seq, u32 heads, u32 kv_heads, u32 dim, float scale) {
    DYNAMIC_SHARED(float, shared);
    u32 width = dim + 1;
    float *ks = shared, *vs = ks + ROWS * width, *qs = vs + ROWS * width, *os = qs + ROWS * width;
    float *ps = os + ROWS * width, *ds = ps + ROWS * (ROWS + 1);
    u32 first = blockIdx.x * ROWS, r = threadIdx.x / 8, c = threadIdx.x % 8, key = first + r, group = heads / kv_heads;
    u32 end = text_end(bounds, blockIdx.z, seq, first);
    float dk[MOST / 8] = {}, dv[MOST / 8] = {};
    for (u32 h = blockIdx.y * group; h < (blockIdx.y + 1) * group; h++) {
        Head head = head_of(qkv, blockIdx.z, h, seq, heads, kv_heads, dim);
        for (u32 query0 = first; query0 < end; query0 += ROWS) {
            __syncthreads();
            if (h == blockIdx.y * group && query0 == first) {
                load_rows(ks, head.k, head.row_len, first, seq, dim);
                load_rows(vs, head.v, head.row_len, first, seq, dim);
            }
            load_rows(qs, head.q, head.row_len, query0, seq, dim);
            load_rows(os, dout + head.first_out, head.out_len, query0, seq, dim);
            __syncthreads();
            for (int j = 0; j < 4; j++) {
                u32 row = c + 8 * j, query = query0 + row;
                float p = 0, d = 0;
                if (key <= query && query < seq) {
                    p = expf(scale * row_dot(qs + row * width, ks + r * width, dim) - lse[head.first_lse + query]);
                    d = p * (row_dot(os + row * width, vs + r * width, dim) - delta[head.first_lse + query]) * scale;
                }
                ps[r * (ROWS + 1) + row] = p;
                ds[r * (ROWS + 1) + row] = d;
            }
            __syncwarp();
#pragma unroll
            for (int i = 0; i < MOST / 8; i++) {
                if (c + 8 * i < dim) {
                    float k = dk[i], v = dv[i];
#pragma unroll 4
                    for (int row = 0; row < ROWS; row++) {
                        k += ds[r * (ROWS + 1) + row] * qs[row * width + c + 8 * i];
                        v += ps[r * (ROWS + 1) + row] * os[row * width + c + 8 * i];
                    }
                    dk[i] = k;
                    dv[i] = v;
                }
            }
        }
    }
    if (key >= seq) return;
    Head head = head_of(qkv, blockIdx.z, blockIdx.y * group, seq, heads, kv_heads, dim);
    float *dk_row = dqkv + (head.k - qkv) + key * head.row_len, *dv_row = dqkv + (head.v - qkv) + key * head.row_len;
#pragma unroll
    for (int i = 0; i < MOST / 8; i++) {
        if (c + 8 * i < dim) {
            dk_row[c + 8 * i] = dk[i];
            dv_row[c + 8 * i] = dv[i];
        }
    }
}

#define BACKWARD const float *qkv, const float *lse, const float *delta, const float *dout, float *dqkv, const u32 *bounds
#define DIMS u32 seq, u32 heads, u32 kv_heads, u32 dim, float scale

// For heads of up to `most` dims.
#define ATTENTION(most)                                                                                                               \
    LAUNCH(256) attention_f32_##most(const float* qkv, float* out, float* lse, const u32* bounds, DIMS) {                             \
        forward<most>(qkv, out, lse, bounds, seq, heads, kv_heads, dim, scale);                                                       \
    }                                                                                                                                 \
    LAUNCH(256) attention_cached_f32_##most(const float* qkv, const float* cache, const u32* places, float* out, DIMS) {              \
        cached<most>(qkv, cache, places, out, seq, heads, kv_heads, dim, scale);                                                      \
    }                                                                                                                                 \
    LAUNCH(256) attention_dq_f32_##most(BACKWARD, DIMS) {                                                                             \
        backward_q<most>(qkv, lse, delta, dout, dqkv, bounds, seq, heads, kv_heads, dim, scale);                                      \
    }                                                                                                                                 \
    LAUNCH(256) attention_dkv_f32_##most(BACKWARD, DIMS) {                                                                            \
        backward_kv<most>(qkv, lse, delta, dout, dqkv, bounds, seq, heads, kv_heads, dim, scale);                                     \
    }

ATTENTION(64)
ATTENTION(128)
ATTENTION(256)

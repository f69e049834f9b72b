// What both kinds of attention begin with: where a head lies in `qkv`, or in a cache. A row of `qkv` has the query heads, then the key heads,
// then the value heads of one token; a row of a cache the key heads, then the value heads.

// Where the parts of one (sample, query head) lie.
struct Head {
    const float *q, *k, *v;
    u64 row_len, out_len, first_out, first_lse;
};

DEVICE Head head_of(const float* qkv, u32 sample, u32 head, u32 seq, u32 heads, u32 kv_heads, u32 dim) {
    u64 row_len = (u64)(heads + 2 * kv_heads) * dim, out_len = (u64)heads * dim;
    u32 kv = head / (heads / kv_heads);
    const float* rows = qkv + sample * seq * row_len;
    return {rows + head * dim,
            rows + (heads + kv) * dim,
            rows + (heads + kv_heads + kv) * dim,
            row_len,
            out_len,
            sample * seq * out_len + head * dim,
            ((u64)sample * heads + head) * seq};
}

// `bounds (2, N)`, or null, says of each row where in its sample its text begins, and where the next one does; a tile is of one text.
DEVICE u32 text_start(const u32* bounds, u32 sample, u32 seq, u32 row) { return bounds ? bounds[sample * seq + row] : 0; }

DEVICE u32 text_end(const u32* bounds, u32 sample, u32 seq, u32 row) {
    return bounds ? bounds[(gridDim.z + sample) * seq + row] : seq;
}

// Queries side by side, and the keys and values that they see: rows of `q_len` and of `kv_len` elements.
struct Tile {
    const float *q, *k, *v;
    u64 q_len, kv_len;
    // Its first query, and how many there are.
    u32 first, num_queries;
    // Tiles of keys from `start` to the one with key `last` are looked at, and there are `num_keys`.
    u32 start, last, num_keys;
};

// The query heads of row `blockIdx.x` of `qkv` that share key/value head `blockIdx.y`, from the `first` of them on: all of them see their
// sequence up to `last`. `cache (batch, seq, 2 * kv_heads * dim)`, `places (2, rows)`; grid (rows, kv_heads, tiles of query heads).
DEVICE Tile cached_tile(const float* qkv, const float* cache, const u32* places, u32 first, u32 seq, u32 heads, u32 kv_heads, u32 dim) {
    u32 group = heads / kv_heads, position = places[gridDim.x + blockIdx.x];
    u64 row_len = (u64)(heads + 2 * kv_heads) * dim, kv_len = (u64)2 * kv_heads * dim;
    const float* k = cache + places[blockIdx.x] * seq * kv_len + blockIdx.y * dim;
    return {qkv + blockIdx.x * row_len + blockIdx.y * group * dim, k, k + kv_heads * dim, dim, kv_len, first, group, 0, position, position + 1};
}

// Where the result of the first query head of a `cached_tile` begins in `out (rows, heads * dim)`.
DEVICE u64 cached_out(u32 heads, u32 kv_heads, u32 dim) {
    return ((u64)blockIdx.x * heads + blockIdx.y * (heads / kv_heads)) * dim;
}

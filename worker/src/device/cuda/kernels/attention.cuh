// What both kinds of attention begin with: where a head lies in `qkv`. A row of it has the query heads, then the key heads, then the value
// heads of one token.

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

// Embedding, RMSNorm, rotary embedding, SwiGLU. Shapes as in the `Device` trait; `N` tokens.

// A block a token. `table (rows, d)`, `x (N, d)`.
KERNEL embedding(const u32* ids, const float* table, float* x, u32 first_row, u32 rows, u32 d) {
    u64 n = blockIdx.x;
    u32 row = ids[n] - first_row;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) x[n * d + i] = row < rows ? table[(u64)row * d + i] : 0.0f;
}

// A block a row of the table: it looks through all ids in order, so that no two blocks add to one row.
KERNEL embedding_backward(const u32* ids, const float* dx, float* dtable, u32 first_row, u32 tokens, u32 d) {
    __shared__ u32 seen[256];
    u32 row = blockIdx.x;
    for (u32 first = 0; first < tokens; first += 256) {
        u32 n = first + threadIdx.x;
        u32 id = n < tokens ? ids[n] : NOWHERE;
        seen[threadIdx.x] = id;
        if (!__syncthreads_or(n < tokens && id - first_row == row)) continue;
        u32 count = tokens - first < 256 ? tokens - first : 256;
        for (u32 j = 0; j < count; j++) {
            if (seen[j] - first_row != row) continue;
            const float* from = dx + (u64)(first + j) * d;
            for (u32 i = threadIdx.x; i < d; i += 256) dtable[(u64)row * d + i] += from[i];
        }
        __syncthreads();
    }
}

// A warp a row. `x, y (N, d)`, `w (d)`, `inv_rms (N)`.
KERNEL rms_norm(const float* x, const float* w, float* y, float* inv_rms, float eps, u32 tokens, u32 d) {
    u64 n = (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (n >= tokens) return;
    const float* row = x + n * d;
    u32 lane = threadIdx.x % 32;
    float squares = 0;
    for (u32 i = lane; i < d; i += 32) squares += row[i] * row[i];
    float inverse = 1.0f / sqrtf(warp_sum(squares) / (float)d + eps);
    for (u32 i = lane; i < d; i += 32) y[n * d + i] = row[i] * w[i] * inverse;
    if (lane == 0) inv_rms[n] = inverse;
}

// A warp a row: `dx += r (dy w - x r^2 mean(dy w x))` with `r = inv_rms`.
KERNEL rms_norm_backward(const float* x, const float* w, const float* inv_rms, const float* dy, float* dx, u32 tokens, u32 d) {
    u64 n = (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (n >= tokens) return;
    u32 lane = threadIdx.x % 32;
    const float *row = x + n * d, *gradient = dy + n * d;
    float products = 0;
    for (u32 i = lane; i < d; i += 32) products += gradient[i] * w[i] * row[i];
    float inverse = inv_rms[n];
    float back = warp_sum(products) / (float)d * inverse * inverse;
    for (u32 i = lane; i < d; i += 32) dx[n * d + i] += inverse * (gradient[i] * w[i] - row[i] * back);
}

// A block `rows_each` rows and as many columns as threads: `parts (blocks.y, d)`, sums of `dy x inv_rms` over its rows.
KERNEL rms_norm_dw(const float* x, const float* inv_rms, const float* dy, float* parts, u32 rows_each, u32 tokens, u32 d) {
    u32 col = blockIdx.x * blockDim.x + threadIdx.x;
    if (col >= d) return;
    u32 first = blockIdx.y * rows_each, end = first + rows_each < tokens ? first + rows_each : tokens;
    float sum = 0;
    for (u32 n = first; n < end; n++) sum += dy[(u64)n * d + col] * x[(u64)n * d + col] * inv_rms[n];
    parts[(u64)blockIdx.y * d + col] = sum;
}

// A block a token: rotates the first `turned` heads of `qkv (N, row_len)` in place. `table (seq, head_dim)`: cosines, then sines.
KERNEL rope(const float* table, float* qkv, float sign, u32 seq, u32 row_len, u32 turned, u32 head_dim) {
    u64 n = blockIdx.x;
    u32 half = head_dim / 2;
    const float* angles = table + n % seq * head_dim;
    for (u32 pair = threadIdx.x; pair < turned * half; pair += blockDim.x) {
        u32 head = pair / half, i = pair % half;
        float* at = qkv + n * row_len + head * head_dim + i;
        float a = at[0], b = at[half], cosine = angles[i], sine = sign * angles[half + i];
        at[0] = a * cosine - b * sine;
        at[half] = b * cosine + a * sine;
    }
}

// `act = weight silu(gate) up` for one row.
DEVICE void swiglu_row(const float* gate_up, float* act, float weight, u32 ff) {
    for (u32 i = threadIdx.x; i < ff; i += blockDim.x) {
        float gate = gate_up[i];
        act[i] = gate * sigmoid(gate) * gate_up[ff + i] * weight;
    }
}

// Turns `gate_up` into its gradient and recomputes `act`; returns this thread's part of the gradient of the weight.
DEVICE float swiglu_backward_row(const float* dact, float* gate_up, float* act, float weight, u32 ff) {
    float dweight = 0;
    for (u32 i = threadIdx.x; i < ff; i += blockDim.x) {
        float gate = gate_up[i], up = gate_up[ff + i], d = dact[i];
        float s = sigmoid(gate), plain = gate * s * up;
        dweight += d * plain;
        act[i] = plain * weight;
        gate_up[i] = d * weight * up * s * (1.0f + gate * (1.0f - s));
        gate_up[ff + i] = d * weight * gate * s;
    }
    return dweight;
}

// A block a row. `gate_up (N, 2 ff)`, `act (N, ff)`.
KERNEL swiglu(const float* gate_up, float* act, u32 ff) {
    u64 r = blockIdx.x;
    swiglu_row(gate_up + r * 2 * ff, act + r * ff, 1.0f, ff);
}

KERNEL swiglu_backward(const float* dact, float* gate_up, float* act, u32 ff) {
    u64 r = blockIdx.x;
    swiglu_backward_row(dact + r * ff, gate_up + r * 2 * ff, act + r * ff, 1.0f, ff);
}

// A block a row of the capacity; those past `offsets[experts]` do nothing. `weights (N, TOP_K)` by assignment.
KERNEL routed_swiglu(const u32* offsets, const u32* assignments, const float* weights, const float* gate_up, float* act,
                     u32 experts, u32 ff) {
    u64 r = blockIdx.x;
    if (r >= offsets[experts]) return;
    swiglu_row(gate_up + r * 2 * ff, act + r * ff, weights[assignments[r]], ff);
}

// As above, and `dweights (R)`.
KERNEL routed_swiglu_backward(const u32* offsets, const u32* assignments, const float* weights, const float* dact, float* gate_up,
                              float* act, float* dweights, u32 experts, u32 ff) {
    __shared__ float shared[32];
    u64 r = blockIdx.x;
    if (r >= offsets[experts]) return;
    float dweight = swiglu_backward_row(dact + r * ff, gate_up + r * 2 * ff, act + r * ff, weights[assignments[r]], ff);
    dweight = block_sum(dweight, shared);
    if (threadIdx.x == 0) dweights[r] = dweight;
}

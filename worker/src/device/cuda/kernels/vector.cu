// Elementwise arithmetic, sums in f64, the optimizer. One thread an element; views start anywhere, so accesses are of one word.

#define INDEX ((u64)blockIdx.x * blockDim.x + threadIdx.x)

KERNEL fill(float* y, float value, u64 n) {
    if (INDEX < n) y[INDEX] = value;
}

KERNEL add(const float* a, const float* b, float* y, u64 n) {
    if (INDEX < n) y[INDEX] = a[INDEX] + b[INDEX];
}

KERNEL add_assign(const float* x, float* y, u64 n) {
    if (INDEX < n) y[INDEX] += x[INDEX];
}

KERNEL scale(float alpha, float* y, u64 n) {
    if (INDEX < n) y[INDEX] *= alpha;
}

// A block a row: rows of `y (N, width)` where `rows (N)` is NOWHERE become zeros, whatever was there.
KERNEL keep_rows(const u32* rows, float* y, u32 width) {
    u64 n = blockIdx.x;
    if (rows[n] != NOWHERE) return;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) y[n * width + i] = 0;
}

// A block a row: row `n` of `y (N, width)` times `by[n]`.
KERNEL scale_rows(const float* by, float* y, u32 width) {
    u64 n = blockIdx.x;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) y[n * width + i] *= by[n];
}

// `parts (blocks)`: sums of `chunk` elements each, of their squares if `squares`.
KERNEL sum_parts(const float* x, double* parts, u32 squares, u32 chunk, u64 n) {
    __shared__ double shared[32];
    u64 first = (u64)blockIdx.x * chunk, end = first + chunk < n ? first + chunk : n;
    double sum = 0;
    for (u64 i = first + threadIdx.x; i < end; i += blockDim.x) {
        double v = x[i];
        sum += squares ? v * v : v;
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// One block: `out (1)` = sum of `parts (n)`.
KERNEL sum_final(const double* parts, double* out, u64 n) {
    __shared__ double shared[32];
    double sum = 0;
    for (u64 i = threadIdx.x; i < n; i += blockDim.x) sum += parts[i];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) out[0] = sum;
}

// `flag (1)`, 0 before, becomes 1 if an element is infinite or NaN.
KERNEL not_finite(const float* x, u32* flag, u64 n) {
    // Infinities and NaN are the values whose exponent is all ones.
    if (INDEX < n && (__float_as_uint(x[INDEX]) & 0x7f800000u) == 0x7f800000u) atomicOr(flag, 1u);
}

// `y (n)` in bf16, from f32. Two elements a thread; an odd last one is written alone.
KERNEL to_bf16(const float* x, u16* y, u64 n) {
    u64 i = 2 * INDEX;
    if (i + 1 < n) {
        ((u32*)y)[INDEX] = pack_bf16(x[i], x[i + 1]);
    } else if (i < n) {
        y[i] = (u16)pack_bf16(x[i], 0.0f);
    }
}

// Word `i` of `x (n)`, mixed as `torus/src/digest.rs` says; past the end a zero is.
DEVICE u32 mixed_word(const float* x, u64 i, u64 n, u32 salt) {
    u32 y = (i < n ? __float_as_uint(x[i]) : 0u) ^ (salt + (u32)i * 0x9e3779b1u);
    y = (y ^ y >> 16) * 0x85ebca77u;
    return y ^ y >> 15;
}

// `sums (2)` += products and values of the digest of `x (n)`; integers, so the order of the blocks is free.
KERNEL digest(const float* x, u64* sums, u32 salt, u64 n) {
    __shared__ u64 shared[32];
    u64 products = 0, values = 0;
    for (u64 pair = INDEX; 2 * pair < n; pair += (u64)gridDim.x * blockDim.x) {
        u64 lo = mixed_word(x, 2 * pair, n, salt), hi = mixed_word(x, 2 * pair + 1, n, salt);
        products += lo * hi;
        values += hi << 32 | lo;
    }
    products = block_sum(products, shared);
    values = block_sum(values, shared);
    if (threadIdx.x == 0) {
        atomicAdd(sums, products);
        atomicAdd(sums + 1, values);
    }
}

// One AdamW update from `p0, m0, v0 (n)` to `p, m, v (n)`, which may be the same memory: one kernel for both, so both have the same bits. The
// constants are rounded once, by the host.
KERNEL adamw(const float* p0, const float* m0, const float* v0, float* p, float* m, float* v, const float* g, float keep, float beta1, float one_minus_beta1, float beta2,
             float one_minus_beta2, float step, float inv_sqrt_bias2, float eps, float grad_scale, u64 n) {
    u64 i = INDEX;
    if (i >= n) return;
    float gradient = g[i] * grad_scale;
    float first = beta1 * m0[i] + one_minus_beta1 * gradient;
    float second = beta2 * v0[i] + one_minus_beta2 * gradient * gradient;
    m[i] = first;
    v[i] = second;
    p[i] = p0[i] * keep - step * (first / (sqrtf(second) * inv_sqrt_bias2 + eps));
}

// `sums (cols) = [sums +] the rows of parts (rows, cols)`, rows in order.
KERNEL sum_rows(const float* parts, float* sums, u32 rows, u32 cols, u32 add) {
    u32 col = blockIdx.x * blockDim.x + threadIdx.x;
    if (col >= cols) return;
    float sum = 0;
    for (u32 r = 0; r < rows; r++) sum += parts[(u64)r * cols + col];
    sums[col] = add ? sums[col] + sum : sum;
}

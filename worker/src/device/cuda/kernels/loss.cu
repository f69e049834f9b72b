// Cross-entropy over a vocabulary that is split over ranks; `logits (N, rows)` are those of rows `first_row..` of the vocabulary.

// A block a token: `stats (N, 3)` = largest logit, sum of `exp(logit - largest)`, target's logit or 0.
KERNEL cross_entropy_local(const u32* targets, const float* logits, float* stats, u32 first_row, u32 rows) {
    __shared__ float shared[32];
    u64 n = blockIdx.x;
    const float* row = logits + n * rows;
    float max = minus_infinity(), sum = 0;
    for (u32 i = threadIdx.x; i < rows; i += blockDim.x) max = larger(max, row[i]);
    max = block_max(max, shared);
    for (u32 i = threadIdx.x; i < rows; i += blockDim.x) sum += expf(row[i] - max);
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) {
        u32 target = targets[n] - first_row;
        stats[3 * n] = max;
        stats[3 * n + 1] = sum;
        stats[3 * n + 2] = target < rows ? row[target] : 0.0f;
    }
}

// A thread a token: `stats (ranks, N, 3)` to `lse (N)` and `losses (N)`, ranks in order.
KERNEL cross_entropy_combine(const float* stats, float* lse, float* losses, u32 ranks, u32 tokens) {
    u32 n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= tokens) return;
    float max = minus_infinity(), sum = 0, target = 0;
    for (u32 r = 0; r < ranks; r++) max = larger(max, stats[((u64)r * tokens + n) * 3]);
    for (u32 r = 0; r < ranks; r++) {
        const float* of_rank = stats + ((u64)r * tokens + n) * 3;
        sum += of_rank[1] * expf(of_rank[0] - max);
        target += of_rank[2];
    }
    lse[n] = max + logf(sum);
    losses[n] = lse[n] - target;
}

// A block a token: `logits = scale (exp(logits - lse) - [target])`.
KERNEL cross_entropy_backward(const u32* targets, const float* lse, float* logits, float scale, u32 first_row, u32 rows) {
    u64 n = blockIdx.x;
    u32 target = targets[n] - first_row;
    float* row = logits + n * rows;
    for (u32 i = threadIdx.x; i < rows; i += blockDim.x) {
        float d = expf(row[i] - lse[n]) * scale;
        row[i] = i == target ? d - scale : d;
    }
}

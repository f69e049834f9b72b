// The router, and moving tokens to their experts and back. `N` tokens, `E` experts, rows as in `Groups`.

struct Candidate {
    float logit;
    u32 expert;
};

// Ties go to the lower expert; NaN is better than nothing.
DEVICE bool better(Candidate a, Candidate b) { return a.logit > b.logit || (a.logit == b.logit && a.expert < b.expert); }

DEVICE Candidate exchange(Candidate a, int mask) {
    return {__shfl_xor_sync(0xffffffffu, a.logit, mask), __shfl_xor_sync(0xffffffffu, a.expert, mask)};
}

// The two best of two ordered pairs.
DEVICE void merge(Candidate& first, Candidate& second, Candidate other_first, Candidate other_second) {
    if (better(other_first, first)) {
        second = better(other_second, first) ? other_second : first;
        first = other_first;
    } else if (better(other_first, second)) {
        second = other_first;
    }
}

// Softmax, log-sum-exp, the two largest, their weights, and this block's counts and sums of probabilities, in one pass over
// `logits (N, E)`. A warp a token; a block has `tokens_each` tokens, its warps take turns. `probs (N, E)`, `lse (N)`,
// `chosen, weights (N, TOP_K)`, `counts (E)` zeros before, `prob_parts (blocks, E)`. Shared: `(warps, E)` floats. `kept (N)`, or null, is
// NOWHERE at rows that are no token: they go nowhere and count nowhere.
KERNEL route(const float* logits, const u32* kept, float* probs, float* lse, u32* chosen, float* weights, u32* counts, float* prob_parts,
             u32 tokens_each, u32 tokens, u32 experts) {
    DYNAMIC_SHARED(float, sums);
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    float* own = sums + warp * experts;
    for (u32 e = lane; e < experts; e += 32) own[e] = 0;
    u32 first_token = blockIdx.x * tokens_each;
    u32 end = first_token + tokens_each < tokens ? first_token + tokens_each : tokens;
    for (u32 n = first_token + warp; n < end; n += warps) {
        if (kept && kept[n] == NOWHERE) {
            for (u32 e = lane; e < experts; e += 32) probs[(u64)n * experts + e] = 0;
            if (lane == 0) lse[n] = 0;
            if (lane < TOP_K) {
                chosen[(u64)n * TOP_K + lane] = NOWHERE;
                weights[(u64)n * TOP_K + lane] = 0;
            }
            continue;
        }
        const float* row = logits + (u64)n * experts;
        Candidate first = {minus_infinity(), NOWHERE}, second = first;
        for (u32 e = lane; e < experts; e += 32) merge(first, second, {row[e], e}, {minus_infinity(), NOWHERE});
        for (int mask = 16; mask > 0; mask >>= 1) merge(first, second, exchange(first, mask), exchange(second, mask));
        float max = first.logit, sum = 0;
        for (u32 e = lane; e < experts; e += 32) sum += expf(row[e] - max);
        sum = warp_sum(sum);
        float inverse = 1.0f / sum;
        for (u32 e = lane; e < experts; e += 32) {
            float p = expf(row[e] - max) * inverse;
            probs[(u64)n * experts + e] = p;
            own[e] += p;
        }
        if (lane == 0) {
            // Logits that are NaN: any two experts.
            if (first.expert >= experts) first.expert = second.expert == 0 ? 1 : 0;
            if (second.expert >= experts) second.expert = first.expert == 0 ? 1 : 0;
            float weight = sigmoid(row[first.expert] - row[second.expert]);
            lse[n] = max + logf(sum);
            chosen[(u64)n * TOP_K] = first.expert;
            chosen[(u64)n * TOP_K + 1] = second.expert;
            weights[(u64)n * TOP_K] = weight;
            weights[(u64)n * TOP_K + 1] = 1.0f - weight;
            // Integers: their sum does not depend on the order.
            atomicAdd(&counts[first.expert], 1u);
            atomicAdd(&counts[second.expert], 1u);
        }
    }
    __syncthreads();
    for (u32 e = threadIdx.x; e < experts; e += blockDim.x) {
        float sum = 0;
        for (u32 w = 0; w < warps; w++) sum += sums[w * experts + e];
        prob_parts[(u64)blockIdx.x * experts + e] = sum;
    }
}

// A warp a token. Gradient of the z and balance losses, `z p_e + balance p_e (f_e - sum_j f_j p_j)` with `f = counts * share`, and of
// the chosen experts' weights; `z` is twice the coefficient over the tokens. `dlogits (N, E)`.
KERNEL route_backward(const float* probs, const float* lse, const u32* chosen, const float* weights, const u32* counts,
                      const u32* positions, const float* dweights, float* dlogits, float z, float balance, float share, u32 tokens,
                      u32 experts) {
    u64 n = (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (n >= tokens) return;
    u32 lane = threadIdx.x % 32;
    const float* p = probs + n * experts;
    float mean = 0;
    for (u32 e = lane; e < experts; e += 32) mean += (float)counts[e] * share * p[e];
    mean = warp_sum(mean);
    u32 first = positions[n * TOP_K], second = positions[n * TOP_K + 1];
    float dfirst = first == NOWHERE ? 0.0f : dweights[first], dsecond = second == NOWHERE ? 0.0f : dweights[second];
    float d = weights[n * TOP_K] * weights[n * TOP_K + 1] * (dfirst - dsecond), zn = z * lse[n];
    for (u32 e = lane; e < experts; e += 32) {
        float gradient = p[e] * (zn + balance * ((float)counts[e] * share - mean));
        if (e == chosen[n * TOP_K]) gradient += d;
        if (e == chosen[n * TOP_K + 1]) gradient -= d;
        dlogits[n * experts + e] = gradient;
    }
}

// Counting sort of the assignments to the experts `first..first + experts`, stable: three kernels. A block has as many assignments
// as threads. First: `hist (experts, blocks)`, assignments by expert and block. Shared: `(experts)` u32.
KERNEL group_count(const u32* chosen, u32* hist, u32 first, u32 experts, u32 capacity) {
    DYNAMIC_SHARED(u32, num);
    for (u32 e = threadIdx.x; e < experts; e += blockDim.x) num[e] = 0;
    __syncthreads();
    u32 a = blockIdx.x * blockDim.x + threadIdx.x;
    if (a < capacity && chosen[a] - first < experts) atomicAdd(&num[chosen[a] - first], 1u);
    __syncthreads();
    for (u32 e = threadIdx.x; e < experts; e += blockDim.x) hist[(u64)e * gridDim.x + blockIdx.x] = num[e];
}

// One block: turns `hist` into the first row of each expert and block, and writes `offsets (experts + 1)`.
KERNEL group_scan(u32* hist, u32* offsets, u32 experts, u32 blocks) {
    for (u32 e = threadIdx.x; e < experts; e += blockDim.x) {
        u32 sum = 0;
        for (u32 b = 0; b < blocks; b++) {
            u32 count = hist[(u64)e * blocks + b];
            hist[(u64)e * blocks + b] = sum;
            sum += count;
        }
        offsets[e + 1] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        offsets[0] = 0;
        for (u32 e = 0; e < experts; e++) offsets[e + 1] += offsets[e];
    }
    __syncthreads();
    for (u32 e = threadIdx.x; e < experts; e += blockDim.x) {
        for (u32 b = 0; b < blocks; b++) hist[(u64)e * blocks + b] += offsets[e];
    }
}

// `assignments (R)` and `positions (capacity)`. Shared: `(threads)` u32.
KERNEL group_place(const u32* chosen, const u32* hist, u32* assignments, u32* positions, u32 first, u32 experts, u32 capacity) {
    DYNAMIC_SHARED(u32, seen);
    u32 a = blockIdx.x * blockDim.x + threadIdx.x;
    u32 expert = a < capacity ? chosen[a] - first : NOWHERE;
    seen[threadIdx.x] = expert;
    __syncthreads();
    if (a >= capacity) return;
    if (expert >= experts) {
        positions[a] = NOWHERE;
        return;
    }
    u32 row = hist[(u64)expert * gridDim.x + blockIdx.x];
    for (u32 j = 0; j < threadIdx.x; j++) row += seen[j] == expert;
    positions[a] = row;
    assignments[row] = a;
}

// A block a row of the capacity: `rows (R, d)` = `x (N, d)` of the row's token.
KERNEL gather_rows(const u32* offsets, const u32* assignments, const float* x, float* rows, u32 experts, u32 d) {
    u64 r = blockIdx.x;
    if (r >= offsets[experts]) return;
    const float* from = x + (u64)(assignments[r] / TOP_K) * d;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) rows[r * d + i] = from[i];
}

// A block a token: `y[n] +=` its rows, assignments in order.
KERNEL combine_rows(const u32* positions, const float* rows, float* y, u32 d) {
    u64 n = blockIdx.x;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
        float sum = y[n * d + i];
        for (u32 k = 0; k < TOP_K; k++) {
            u32 row = positions[n * TOP_K + k];
            if (row != NOWHERE) sum += rows[(u64)row * d + i];
        }
        y[n * d + i] = sum;
    }
}

// Attention within packed token sets, for the CPU: exact softmax in one pass over the keys, with a running maximum.
// Sixteen queries at a time are the lanes of a vector, so that nothing is shuffled and a head's width needs no padding.
// Built with -DWIDTH (of a head, even) and, for float32, -DFLOAT32; bfloat16 needs AVX512-BF16 and sums in float32.
#include <cstdint>
#include <cstring>
#ifndef FLOAT32
#include <immintrin.h>
#endif

namespace {
constexpr int LANES = 16;
constexpr int BLOCK = 64;  // keys whose scores lie in the first-level cache
constexpr int GROUP = 8;   // keys whose scores grow side by side in registers
constexpr float NEVER = -1e30f;
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));

#ifdef FLOAT32
typedef float item;    // a number as stored
typedef float step;    // what one multiply-add takes of a lane
typedef vec steps;
inline vec dot(vec sum, steps a, step b) { return sum + a * b; }
inline item stored(float x) { return x; }
#else
typedef uint16_t __attribute__((may_alias)) item;  // two of them are read as a step
typedef int32_t step;  // two bfloat16 numbers
typedef ints steps;
inline vec dot(vec sum, steps a, step b) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(__m512i)a, (__m512bh)_mm512_set1_epi32(b));
}
inline item stored(float x) {  // rounded to nearest, ties to even
    uint32_t all;
    std::memcpy(&all, &x, 4);
    return item((all + 0x7fff + ((all >> 16) & 1)) >> 16);
}
#endif
constexpr int PER = sizeof(step) / sizeof(item);
constexpr int DEPTH = WIDTH / PER;

inline vec larger(vec a, vec b) { return a > b ? a : b; }

inline vec power(vec x) {  // 2^x for x <= 0, relative error 2e-7
    x = larger(x, vec{} - 126.0f);
    vec shifted = x + 12582912.0f;  // 1.5 * 2^23: the whole part goes to the lowest bits
    vec part = x - (shifted - 12582912.0f);
    vec y = part * 1.33813025e-03f + 9.66636852e-03f;
    y = y * part + 5.55038101e-02f;
    y = y * part + 2.40223490e-01f;
    y = y * part + 6.93147181e-01f;
    y = y * part + 1.0f;
    return (vec)((ints)y + ((ints)shifted << 23));
}

struct Sums {  // of sixteen queries over the keys so far
    vec top = vec{} + NEVER, total = {}, value[WIDTH] = {};
};

// Scores of `n` keys for sixteen queries, and the maximum of `top` and the `real` ones; the others never count.
inline vec scores(const steps *query, const step *keys, int n, int real, vec top, vec *score) {
    for (int j = 0; j < n; j += GROUP) {
        vec sum[GROUP] = {};
        for (int s = 0; s < DEPTH; s++)
            for (int g = 0; g < GROUP; g++) sum[g] = dot(sum[g], query[s], keys[(j + g) * DEPTH + s]);
        for (int g = 0; g < GROUP; g++) {
            score[j + g] = j + g < real ? sum[g] : vec{} + NEVER;
            top = larger(top, score[j + g]);
        }
    }
    return top;
}

// Add `n` keys, of which `real` are there and the rest fill the group up.
inline void add(const steps *query, const step *keys, const step *values, int n, int real, float scale, Sums &sums) {
    vec score[BLOCK];
    steps weight[BLOCK / PER];
    vec top = scores(query, keys, n, real, sums.top, score);
    vec shrink = power((sums.top - top) * scale), total = {}, value[WIDTH] = {};
    for (int j = 0; j < n; j += 2) {
        vec a = power((score[j] - top) * scale), b = power((score[j + 1] - top) * scale);
#ifdef FLOAT32
        weight[j] = a, weight[j + 1] = b;
        total += a + b;
#else
        ints low = ((ints)a + 0x8000) & -65536, high = ((ints)b + 0x8000) & -65536;  // rounded to bfloat16
        weight[j / 2] = (ints)((bits)low >> 16) | high;
        total += (vec)low + (vec)high;
#endif
    }
    for (int j = 0; j < n / PER; j++)
        for (int d = 0; d < WIDTH; d++) value[d] = dot(value[d], weight[j], values[j * WIDTH + d]);
    for (int d = 0; d < WIDTH; d++) sums.value[d] = sums.value[d] * shrink + value[d];
    sums.total = sums.total * shrink + total, sums.top = top;
}

// One head over one set; `qkv` and `out` point to the set's first row.
void one(const item *qkv, item *out, int64_t n, int64_t heads, int64_t head, float scale, step *room) {
    const int64_t row = 3 * heads * WIDTH, filled = (n + GROUP - 1) / GROUP * GROUP;
    const item *queries = qkv + head * WIDTH, *k = queries + heads * WIDTH, *v = k + heads * WIDTH;
    step *keys = room, *values = room + filled * DEPTH;
    std::memset(keys, 0, sizeof(step) * filled * (DEPTH + WIDTH / PER));
    for (int64_t i = 0; i < n; i++) {
        std::memcpy(keys + i * DEPTH, k + i * row, WIDTH * sizeof(item));
        item *to = (item *)(values + i / PER * WIDTH) + i % PER;  // the values of PER keys side by side
        for (int d = 0; d < WIDTH; d++) to[d * PER] = v[i * row + d];
    }
    for (int64_t first = 0; first < n; first += LANES) {
        const int lanes = int(n - first < LANES ? n - first : LANES);
        steps query[DEPTH] = {};
        for (int lane = 0; lane < lanes; lane++)
            for (int s = 0; s < DEPTH; s++) {
                step packed;
                std::memcpy(&packed, queries + (first + lane) * row + s * PER, sizeof packed);
                query[s][lane] = packed;
            }
        Sums sums;
        for (int64_t at = 0; at < filled; at += BLOCK) {
            const int here = int(filled - at < BLOCK ? filled - at : BLOCK), real = int(n - at < here ? n - at : here);
            add(query, keys + at * DEPTH, values + at / PER * WIDTH, here, real, scale, sums);
        }
        for (int d = 0; d < WIDTH; d++) {
            vec mean = sums.value[d] / sums.total;
            for (int lane = 0; lane < lanes; lane++)
                out[((first + lane) * heads + head) * WIDTH + d] = stored(mean[lane]);
        }
    }
}
}  // namespace

// Heads first..last of `sets` sets that lie one after the other in qkv (tokens, 3, heads, WIDTH), into
// out (tokens, heads, WIDTH). `scale` is log2(e) / sqrt(WIDTH); `room` holds 2 * WIDTH items per token of the longest set
// (rounded up to 8).
extern "C" void attend(const item *qkv, item *out, const int64_t *sizes, int64_t sets, int64_t heads, int64_t first,
                       int64_t last, float scale, void *room) {
    for (int64_t i = 0; i < sets; i++) {
        for (int64_t head = first; head < last; head++) one(qkv, out, sizes[i], heads, head, scale, (step *)room);
        qkv += sizes[i] * 3 * heads * WIDTH;
        out += sizes[i] * heads * WIDTH;
    }
}

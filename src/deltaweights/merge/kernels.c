/* Counts over the bits of floating-point numbers, in one pass each, and the sum of float16 numbers with its counts.
 *
 * merge/floats.py counts the same in numpy and explains the terms. The library is optional: merge/compiled.py loads it where it was
 * built, and merge/self_test.py compares what it computes with known results before each run.
 */

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
/* One version for each generation of processors; the loader picks the one for the machine at hand. */
#define COUNTS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define COUNTS
#endif

/* The loops count in integers as wide as the numbers, which is fastest; so few elements at a time cannot overflow 16 bits. */
#define STRIDE 16384

#define DEFINE(WORD, BITS)                                                                                             \
    COUNTS void round_trip_##BITS(const WORD *restrict base, const WORD *restrict delta, const WORD *restrict total,   \
                                  const WORD *restrict difference, size_t count, WORD infinity, WORD step,             \
                                  uint64_t *restrict counts)                                                           \
    {                                                                                                                  \
        const WORD magnitude = (WORD)~(WORD)0 >> 1, limit = (WORD)(2 * step);                                          \
        for (size_t start = 0; start < count; start += STRIDE) {                                                       \
            const size_t stop = count - start < STRIDE ? count : start + STRIDE;                                       \
            WORD region = 0, violations = 0, evidence = 0;                                                             \
            for (size_t i = start; i < stop; i++) {                                                                    \
                const WORD gap = (WORD)(total[i] - base[i]), d = delta[i], back = difference[i];                       \
                const WORD inside = ((WORD)(gap + step) <= limit) & ((WORD)(total[i] & magnitude) < infinity);         \
                const WORD differs = (back != d) & ((WORD)((back | d) & magnitude) != 0);                              \
                region = (WORD)(region + inside);                                                                      \
                violations = (WORD)(violations + (inside & differs));                                                  \
                evidence = (WORD)(evidence + (inside & (gap != 0)));                                                   \
            }                                                                                                          \
            counts[0] += region;                                                                                       \
            counts[1] += violations;                                                                                   \
            counts[2] += evidence;                                                                                     \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    COUNTS uint64_t nonfinite_##BITS(const WORD *restrict numbers, size_t count, WORD infinity)                        \
    {                                                                                                                  \
        const WORD magnitude = (WORD)~(WORD)0 >> 1;                                                                    \
        uint64_t all = 0;                                                                                              \
        for (size_t start = 0; start < count; start += STRIDE) {                                                       \
            const size_t stop = count - start < STRIDE ? count : start + STRIDE;                                       \
            WORD some = 0;                                                                                             \
            for (size_t i = start; i < stop; i++)                                                                      \
                some = (WORD)(some + ((WORD)(numbers[i] & magnitude) >= infinity));                                    \
            all += some;                                                                                               \
        }                                                                                                              \
        return all;                                                                                                    \
    }

DEFINE(uint16_t, 16)
DEFINE(uint32_t, 32)

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

/* The sum of float16 numbers, its round trip, and how many sums are not finite, all at once: float16 is what nearly all deltas are.
 *
 * A sum in float32, rounded to float16, is rounded as if once (float32 has more than twice the digits and two: Figueroa, "When is
 * double rounding innocuous?", 1995). In the region, the sum less the base is exact in float32, so it can be compared there.
 */

#define AVX2 __attribute__((target("avx2,f16c")))

static AVX2 inline __m256i not_equal(__m128i total, __m256 base, __m256 delta)
{
    return _mm256_castps_si256(_mm256_cmp_ps(_mm256_sub_ps(_mm256_cvtph_ps(total), base), delta, _CMP_NEQ_UQ));
}

static AVX2 uint64_t sum_of(__m256i counts)
{
    uint16_t each[16];
    uint64_t sum = 0;
    _mm256_storeu_si256((__m256i *)each, counts);
    for (int i = 0; i < 16; i++)
        sum += each[i];
    return sum;
}

/* Adds 16 numbers at a time; returns how many. */
static AVX2 size_t add_avx2(const uint16_t *restrict base, const uint16_t *restrict delta, uint16_t *restrict total, size_t count,
                            uint64_t *restrict counts)
{
    const __m256i step = _mm256_set1_epi16(1 << 10), limit = _mm256_set1_epi16(2 << 10), one = _mm256_set1_epi16(1);
    const __m256i magnitude = _mm256_set1_epi16(0x7FFF), infinity = _mm256_set1_epi16(0x7C00);
    const size_t whole = count - count % 16;
    for (size_t start = 0; start < whole; start += STRIDE) {
        const size_t stop = whole - start < STRIDE ? whole : start + STRIDE;
        __m256i region = _mm256_setzero_si256(), violations = region, evidence = region, finite_sums = region;
        for (size_t i = start; i < stop; i += 16) {
            const __m128i *b = (const __m128i *)(base + i), *d = (const __m128i *)(delta + i);
            const __m256 b0 = _mm256_cvtph_ps(_mm_loadu_si128(b)), b1 = _mm256_cvtph_ps(_mm_loadu_si128(b + 1));
            const __m256 d0 = _mm256_cvtph_ps(_mm_loadu_si128(d)), d1 = _mm256_cvtph_ps(_mm_loadu_si128(d + 1));
            const __m128i t0 = _mm256_cvtps_ph(_mm256_add_ps(b0, d0), _MM_FROUND_TO_NEAREST_INT);
            const __m128i t1 = _mm256_cvtps_ph(_mm256_add_ps(b1, d1), _MM_FROUND_TO_NEAREST_INT);
            const __m256i t = _mm256_set_m128i(t1, t0);
            _mm256_storeu_si256((__m256i *)(total + i), t);
            /* Packing works on halves of the register: the inner quarters are exchanged afterwards. */
            const __m256i wrong = _mm256_permute4x64_epi64(_mm256_packs_epi32(not_equal(t0, b0, d0), not_equal(t1, b1, d1)), 0xD8);
            const __m256i gap = _mm256_sub_epi16(t, _mm256_loadu_si256((const __m256i *)b)), moved = _mm256_add_epi16(gap, step);
            const __m256i finite = _mm256_cmpgt_epi16(infinity, _mm256_and_si256(t, magnitude));
            const __m256i near = _mm256_cmpeq_epi16(_mm256_min_epu16(moved, limit), moved), inside = _mm256_and_si256(near, finite);
            const __m256i same = _mm256_cmpeq_epi16(gap, _mm256_setzero_si256());
            region = _mm256_add_epi16(region, _mm256_and_si256(inside, one));
            violations = _mm256_add_epi16(violations, _mm256_and_si256(_mm256_and_si256(inside, wrong), one));
            evidence = _mm256_add_epi16(evidence, _mm256_and_si256(_mm256_andnot_si256(same, inside), one));
            finite_sums = _mm256_add_epi16(finite_sums, _mm256_and_si256(finite, one));
        }
        counts[0] += sum_of(region);
        counts[1] += sum_of(violations);
        counts[2] += sum_of(evidence);
        counts[3] += stop - start - sum_of(finite_sums);
    }
    return whole;
}

/* Returns whether this processor can add float16 numbers here. */
int can_add_16(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }

/* Writes sums to ``total``; adds to ``counts``: region, violations, evidence, not finite. */
void add_16(const uint16_t *base, const uint16_t *delta, uint16_t *total, size_t count, uint64_t *counts)
{
    const size_t done = add_avx2(base, delta, total, count, counts);
    if (done < count) { /* the last few, with zeros behind them: 0 + 0 is in the region, unmoved and finite */
        uint16_t b[16] = {0}, d[16] = {0}, t[16];
        const size_t left = count - done;
        for (size_t i = 0; i < left; i++) {
            b[i] = base[done + i];
            d[i] = delta[done + i];
        }
        add_avx2(b, d, t, 16, counts);
        counts[0] -= 16 - left;
        for (size_t i = 0; i < left; i++)
            total[done + i] = t[i];
    }
}
#endif

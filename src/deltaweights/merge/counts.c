/* Counts over the bits of floating-point numbers, in one pass each. merge/floats.py does the same in numpy and explains the terms.
 *
 * Only integers: nothing is rounded and no flag of the processor matters, so the counts are the same on every machine. The library
 * is optional; merge/compiled.py loads it where it was built.
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

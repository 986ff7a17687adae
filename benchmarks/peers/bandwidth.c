// How fast this machine reads memory: each thread adds up its own part of a buffer larger than any cache.
// Usage: bandwidth THREADS MEBIBYTES ROUNDS; prints the bytes per second of the best round.
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int main(int count, char **words) {
    if (count != 4) {
        return 2;
    }
    int threads = atoi(words[1]);
    size_t items = (size_t)atoll(words[2]) * (1 << 20) / sizeof(uint64_t);
    int rounds = atoi(words[3]);
    uint64_t *buffer = malloc(items * sizeof(uint64_t));
    if (buffer == NULL) {
        return 1;
    }
    omp_set_num_threads(threads);
#pragma omp parallel for schedule(static)
    for (size_t at = 0; at < items; at++) {
        buffer[at] = at;
    }
    double best = 0;
    uint64_t kept = 0;
    for (int round = 0; round < rounds; round++) {
        uint64_t sum = 0;
        double begun = omp_get_wtime();
#pragma omp parallel for schedule(static) reduction(+ : sum)
        for (size_t at = 0; at < items; at++) {
            sum += buffer[at];
        }
        double rate = (double)(items * sizeof(uint64_t)) / (omp_get_wtime() - begun);
        kept ^= sum;
        best = rate > best ? rate : best;
    }
    printf("%.0f %llu\n", best, (unsigned long long)kept);
    return 0;
}

// total [m, n] + a [m, k] x b [k, n], each element a chain of fused multiply-adds.
#include <cmath>

extern "C" void chain(const float* a, const float* b, float* total, long m, long k, long n) {
    for (long row = 0; row < m; ++row)
        for (long step = 0; step < k; ++step)
            for (long column = 0; column < n; ++column) {
                float& sum = total[row * n + column];
                sum = std::fma(a[row * k + step], b[step * n + column], sum);
            }
}

// The gated sum on a CPU in float32, vectorised over hidden units; compiled for one number of CHANNELS.
//
//     [u, g] = (A_n + B_k) r(k, n) + b';   out[k, n, c] = sum_m w[c, m] u_m g_m cdf(g_m)
//
// All arrays are dense and row-major: a (points, 2 hidden), b (tokens, 2 hidden), r (tokens, points),
// bias (2 hidden), w (channels, hidden), out and grad (tokens, points, channels); hidden is a multiple of 16.
// Results do not depend on the number of threads: work is cut by shapes alone and summed in a fixed order.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

using Size = std::int64_t;
typedef float Lanes __attribute__((vector_size(kBytes), aligned(4), may_alias));  // one register

constexpr Size kLanes = kBytes / sizeof(float);
constexpr Size kTokens = 16, kPoints = 32;  // a tile of A and B fits L2

static inline Lanes at(const float* x) { return *reinterpret_cast<const Lanes*>(x); }
static inline void add(float* x, Lanes y) { *reinterpret_cast<Lanes*>(x) += y; }
static inline void clear(float* x, Size n) { std::memset(x, 0, n * sizeof(float)); }

static inline float total(Lanes x) {
  float sum = 0;
  for (Size i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

// 1/2 + x p(x^2) / q(x^2), g clamped to [-limit, limit] for x; q's leading coefficient is 1. The coefficients are
// minimax (differential correction on Chebyshev nodes) with value 1 at the limit, so that tails are exactly 0 and 1.
template <int P, int Q>
static inline Lanes saturating(Lanes g, float limit, const float (&p)[P], const float (&q)[Q]) {
  const Lanes low = Lanes{} - limit, high = Lanes{} + limit;
  Lanes x = g < low ? low : g;
  x = x > high ? high : x;
  const Lanes square = x * x;
  Lanes top = p[P - 1] * square + p[P - 2], bottom = square + q[Q - 1];
#pragma GCC unroll 8
  for (int i = P - 3; i >= 0; --i) top = top * square + p[i];
#pragma GCC unroll 8
  for (int i = Q - 2; i >= 0; --i) bottom = bottom * square + q[i];
  return x * top / bottom + 0.5f;
}

// Normal distribution function, (1 + erf(g / sqrt 2)) / 2. Largest error 3e-7, that is 6e-7 of erf.
static inline Lanes cdf(Lanes g) {
  constexpr float p[] = {688295.688f, 97096.6094f, 10364.4023f, 670.140259f, 12.084053f};
  constexpr float q[] = {1725304.12f, 530918.812f, 71364.3203f, 5410.42432f, 240.494232f};
  return saturating(g, 5.2f, p, q);
}

// Derivative of g cdf(g), that is of GELU. Largest error 5e-7.
static inline Lanes slope(Lanes g) {
  constexpr float p[] = {86328.5234f, -3440.11035f, 1547.71777f, 0.324867636f, 3.95527935f, 0.0218201075f};
  constexpr float q[] = {108196.578f, 31755.3887f, 4407.00781f, 379.070007f, 20.3852291f};
  return saturating(g, 5.7f, p, q);
}

// Call f(0) ... f(count - 1) from several threads, each taking the next number that is left.
template <class F>
static void parallel(int threads, Size count, F f) {
  std::atomic<Size> next{0};
  auto work = [&] {
    for (Size i; (i = next++) < count;) f(i);
  };
  std::vector<std::thread> pool;
  for (Size i = 1; i < std::min<Size>(threads, count); ++i) pool.emplace_back(work);
  work();
  for (auto& thread : pool) thread.join();
}

// One point and TOKENS tokens from k on: what is read of the point, the bias and w serves all of them.
template <int TOKENS>
static inline void forward_cells(const float* a, const float* b, const float* r, const float* bias, const float* w,
                                 float* out, Size points, Size hidden, Size n, Size k) {
  const float *an = a + n * 2 * hidden, *bk = b + k * 2 * hidden;
  Lanes sum[TOKENS][CHANNELS] = {};
  for (Size m = 0, v = hidden; m < hidden; m += kLanes, v += kLanes)
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t) {
      const float *bt = bk + t * 2 * hidden, scale = r[(k + t) * points + n];
      const Lanes u = (at(an + m) + at(bt + m)) * scale + at(bias + m);
      const Lanes g = (at(an + v) + at(bt + v)) * scale + at(bias + v);
      const Lanes gated = u * g * cdf(g);
#pragma GCC unroll 8
      for (int c = 0; c < CHANNELS; ++c) sum[t][c] += at(w + c * hidden + m) * gated;
    }
  for (int t = 0; t < TOKENS; ++t)
    for (int c = 0; c < CHANNELS; ++c) out[((k + t) * points + n) * CHANNELS + c] = total(sum[t][c]);
}

extern "C" void forward(const float* a, const float* b, const float* r, const float* bias, const float* w, float* out,
                        Size tokens, Size points, Size hidden, int threads) {
  const Size across = (points + kPoints - 1) / kPoints, down = (tokens + kTokens - 1) / kTokens;
  parallel(threads, across * down, [=](Size tile) {
    const Size k0 = tile / across * kTokens, k1 = std::min(tokens, k0 + kTokens);
    const Size n0 = tile % across * kPoints, n1 = std::min(points, n0 + kPoints);
    for (Size n = n0; n < n1; ++n) {
      Size k = k0;
      for (; k + 2 <= k1; k += 2) forward_cells<2>(a, b, r, bias, w, out, points, hidden, n, k);
      if (k < k1) forward_cells<1>(a, b, r, bias, w, out, points, hidden, n, k);
    }
  });
}

// Floats of scratch that `backward` needs for each of its `parts`: rows of B, the bias and w.
extern "C" Size scratch_per_part(Size hidden) { return (2 * kTokens + 2 + CHANNELS) * hidden; }

// Gradients of a, b, r, bias and w. Each part owns a range of points, hence its rows of grad_a and columns of
// grad_r; what it adds to the other gradients it keeps in its scratch, summed over parts afterwards.
extern "C" void backward(const float* a, const float* b, const float* r, const float* bias, const float* w,
                         const float* grad, float* grad_a, float* grad_b, float* grad_r, float* grad_bias,
                         float* grad_w, float* scratch, Size parts, Size tokens, Size points, Size hidden,
                         int threads) {
  const Size stride = scratch_per_part(hidden), shared = 2 * kTokens * hidden;
  auto sum_parts = [=](const float* x, float* y, Size n) {
    clear(y, n);
    for (Size part = 0; part < parts; ++part)
      for (Size i = 0; i < n; i += kLanes) add(y + i, at(x + part * stride + i));
  };
  clear(grad_a, points * 2 * hidden);
  clear(scratch, parts * stride);
  for (Size k0 = 0; k0 < tokens; k0 += kTokens) {
    const Size k1 = std::min(tokens, k0 + kTokens);
    parallel(threads, parts, [=](Size part) {
      float *part_b = scratch + part * stride, *part_bias = part_b + shared, *part_w = part_bias + 2 * hidden;
      clear(part_b, shared);
      for (Size n = part * points / parts; n < (part + 1) * points / parts; ++n)
        for (Size k = k0; k < k1; ++k) {
          const float *an = a + n * 2 * hidden, *bk = b + k * 2 * hidden;
          float *grad_an = grad_a + n * 2 * hidden, *grad_bk = part_b + (k - k0) * 2 * hidden;
          const Size cell = k * points + n;
          const float scale = r[cell], *grad_out = grad + cell * CHANNELS;
          Lanes grad_scale = {};
          for (Size m = 0, v = hidden; m < hidden; m += kLanes, v += kLanes) {
            const Lanes hu = at(an + m) + at(bk + m), hg = at(an + v) + at(bk + v);
            const Lanes u = hu * scale + at(bias + m), g = hg * scale + at(bias + v);
            const Lanes gelu = g * cdf(g), gated = u * gelu;
            Lanes grad_gated = {};
#pragma GCC unroll 8
            for (int c = 0; c < CHANNELS; ++c) {
              grad_gated += grad_out[c] * at(w + c * hidden + m);
              add(part_w + c * hidden + m, grad_out[c] * gated);
            }
            const Lanes gu = grad_gated * gelu, gg = grad_gated * u * slope(g);
            grad_scale += gu * hu + gg * hg;
            add(part_bias + m, gu);
            add(part_bias + v, gg);
            add(grad_an + m, gu * scale);
            add(grad_an + v, gg * scale);
            add(grad_bk + m, gu * scale);
            add(grad_bk + v, gg * scale);
          }
          grad_r[cell] = total(grad_scale);
        }
    });
    parallel(threads, k1 - k0, [=](Size k) {
      sum_parts(scratch + k * 2 * hidden, grad_b + (k0 + k) * 2 * hidden, 2 * hidden);
    });
  }
  sum_parts(scratch + shared, grad_bias, 2 * hidden);
  sum_parts(scratch + shared + 2 * hidden, grad_w, CHANNELS * hidden);
}

// The two approximations alone, to measure their errors; n is a multiple of 16.
extern "C" void approximations(const float* g, float* out_cdf, float* out_slope, Size n) {
  clear(out_cdf, n);
  clear(out_slope, n);
  for (Size i = 0; i < n; i += kLanes) {
    add(out_cdf + i, cdf(at(g + i)));
    add(out_slope + i, slope(at(g + i)));
  }
}

// The floor of any of this: `count` gated units multiplied and added, operands (u, g, weights: kBare each) in L1.
// Returns their sum, so that no compiler leaves the work out.
constexpr Size kBare = 256;
extern "C" float bare_gated_sum(const float* u, const float* g, const float* w, Size count, int threads) {
  constexpr Size kTasks = 64;
  float sums[kTasks];
  parallel(threads, kTasks, [&](Size task) {
    Lanes sum = {};
    for (Size i = 0; i < count / kTasks / kBare; ++i)
      for (Size m = 0; m < kBare; m += kLanes) sum += at(w + m) * at(u + m) * at(g + m) * cdf(at(g + m));
    sums[task] = total(sum);
  });
  float sum = 0;
  for (float part : sums) sum += part;
  return sum;
}

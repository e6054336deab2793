// The gated sum on a CPU in float32, vectorised over hidden units.
//
//     [u, g] = (A_n + B_k) r(k, n) + b';   out[k, n, c] = sum_m w[c, m] u_m GELU(g_m)
//
// Three forms: as above; without w, which is then in u's rows of A, B and b' (one channel); without u (ungated).
// All arrays are dense and row-major: a (points, rows), b (tokens, rows), r (tokens, points), bias (rows),
// w (channels, hidden) or null, out and grad (tokens, points, channels); rows are 2 hidden, those of u first, or
// hidden without u; hidden is a multiple of 16. Everything is passed by C's own types, so one library serves every
// Python. Results do not depend on the number of threads: work is cut by shapes alone and summed in a fixed order.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <mutex>
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
typedef std::int32_t Bits __attribute__((vector_size(kBytes), may_alias));

constexpr Size kLanes = kBytes / sizeof(float);
constexpr Size kTokens = 16, kPoints = 30;  // a tile of A and B fits L2
constexpr int kStep = 3;                    // points in lockstep: what is read of a token serves all of them

static inline Lanes at(const float* x) { return *reinterpret_cast<const Lanes*>(x); }
static inline void add(float* x, Lanes y) { *reinterpret_cast<Lanes*>(x) += y; }
static inline void clear(float* x, Size n) { std::memset(x, 0, n * sizeof(float)); }

static inline float total(Lanes x) {
#if defined(__AVX512F__)
  typedef float Four __attribute__((vector_size(16)));
  Four parts[kLanes / 4], sum = {};
  std::memcpy(parts, &x, sizeof x);
  for (const Four& part : parts) sum += part;
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
#else
  float sum = 0;
  for (Size i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
#endif
}

// Coefficients, the limit and the powers are macros: kernels/build.py has them, and where they come from.
static inline Lanes squared(Lanes x, int times) {
#pragma GCC unroll 8
  for (int i = 0; i < times; ++i) x = x * x;
  return x;
}

template <int N>
static inline Lanes power_of_polynomial(Lanes x, const float (&c)[N], int squarings) {
  Lanes y = c[N - 1] * x + c[N - 2];
#pragma GCC unroll 8
  for (int i = N - 3; i >= 0; --i) y = y * x + c[i];
  return squared(y, squarings);
}

// 2 cdf(-x). Of few registers the fewest constants are fastest, of many the fewest multiplies: 10 or 8, of 10 and 11.
static inline Lanes twice_tail(Lanes x) {
#if defined(__AVX512F__)
  constexpr float c[] = {WIDE_TAIL};
  const Lanes y = (c[0] * x + c[1]) * x + c[2], z = (x + c[3]) * y + c[4];
  return squared((((y + c[5]) + z) * z + c[6]) * x + 1.0f, WIDE_TAIL_SQUARINGS);
#else
  constexpr float tail[] = {TAIL};
  return power_of_polynomial(x, tail, TAIL_SQUARINGS);
#endif
}

// What GELU and its derivative are made of: |g|, x = min(|g|, LIMIT), and 1 - 2 cdf(-x), the last exactly 1 beyond.
struct Gate {
  Lanes g, size, x, body;
  explicit inline Gate(Lanes gate) : g(gate) {
    const Lanes limit = Lanes{} + LIMIT;
    size = (Lanes)((Bits)g & 0x7fffffff);
    x = size < limit ? size : limit;
    body = 1.0f - twice_tail(x);
  }
  inline Lanes twice_gelu() const { return g + size * body; }
  inline Lanes twice_slope() const {  // 1 + sign(g) (1 - 2 cdf(-x) + 2 x pdf(x))
    constexpr float density[] = {DENSITY};
    const Lanes odd = body + x * power_of_polynomial(x * x, density, DENSITY_SQUARINGS);
    return 1.0f + (Lanes)((Bits)odd ^ ((Bits)g & (std::int32_t)0x80000000));
  }
};

// Call f(thread) in several threads at once, this one among them.
template <class F>
static void together(int threads, F f) {
  std::vector<std::thread> pool;
  for (int i = 1; i < threads; ++i) pool.emplace_back(f);
  f();
  for (auto& thread : pool) thread.join();
}

// Call f(0) ... f(count - 1), each thread taking the next number that is left.
template <class F>
static void share(std::atomic<Size>& next, Size count, F f) {
  for (Size i; (i = next++) < count;) f(i);
}

class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const Size round = round_;
    if (++waiting_ == size_) {
      waiting_ = 0;
      ++round_;
      all_here_.notify_all();
    } else {
      all_here_.wait(lock, [&] { return round_ != round; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_here_;
  int size_, waiting_ = 0;
  Size round_ = 0;
};

struct Problem {
  const float *a, *b, *r, *bias, *w;
  Size tokens, points, hidden, channels, rows;  // rows: hidden units with those of u
};

// STEP points and one token. CHANNELS of them from c0 on; 0 is one channel whose w is in u.
template <int STEP, bool GATED, int CHANNELS>
static inline void forward_cells(const Problem& p, float* out, Size n, Size k, Size c0) {
  constexpr int kSums = CHANNELS ? CHANNELS : 1;
  const Size gates = p.rows - p.hidden;
  const float *b = p.b + k * p.rows, *a = p.a + n * p.rows, *r = p.r + k * p.points + n, *w = p.w + c0 * p.hidden;
  Lanes sum[STEP][kSums] = {};
  for (Size m = 0; m < p.hidden; m += kLanes) {
#pragma GCC unroll 8
    for (int i = 0; i < STEP; ++i) {
      const float* ai = a + i * p.rows + m;
      Lanes y = Gate((at(ai + gates) + at(b + gates + m)) * r[i] + at(p.bias + gates + m)).twice_gelu();
      if (GATED) {
        const Lanes u = (at(ai) + at(b + m)) * r[i] + at(p.bias + m);
        if (!CHANNELS) {
          sum[i][0] += u * y;
          continue;
        }
        y *= u;
      }
#pragma GCC unroll 8
      for (int c = 0; c < CHANNELS; ++c) sum[i][c] += at(w + c * p.hidden + m) * y;
    }
  }
  for (int i = 0; i < STEP; ++i)
    for (int c = 0; c < kSums; ++c) out[(k * p.points + n + i) * p.channels + c0 + c] = 0.5f * total(sum[i][c]);
}

template <bool GATED, int CHANNELS>
static void forward_tile(const Problem& p, float* out, Size n0, Size k0, Size c0) {
  const Size n1 = std::min(p.points, n0 + kPoints), k1 = std::min(p.tokens, k0 + kTokens);
  for (Size k = k0; k < k1; ++k) {
    Size n = n0;
    for (; n + kStep <= n1; n += kStep) forward_cells<kStep, GATED, CHANNELS>(p, out, n, k, c0);
    for (; n < n1; ++n) forward_cells<1, GATED, CHANNELS>(p, out, n, k, c0);
  }
}

template <bool GATED>
static void forward_channels(const Problem& p, float* out, Size n0, Size k0) {
  Size c = 0;
  for (; c + 4 <= p.channels; c += 4) forward_tile<GATED, 4>(p, out, n0, k0, c);
  if (p.channels - c == 3) forward_tile<GATED, 3>(p, out, n0, k0, c);
  if (p.channels - c == 2) forward_tile<GATED, 2>(p, out, n0, k0, c);
  if (p.channels - c == 1) forward_tile<GATED, 1>(p, out, n0, k0, c);
}

extern "C" void forward(const float* a, const float* b, const float* r, const float* bias, const float* w, float* out,
                        Size tokens, Size points, Size hidden, Size channels, Size rows, int threads) {
  const Problem p{a, b, r, bias, w, tokens, points, hidden, channels, rows};
  const Size across = (points + kPoints - 1) / kPoints, tiles = across * ((tokens + kTokens - 1) / kTokens);
  std::atomic<Size> next{0};
  together(std::min<Size>(threads, tiles), [&] {
    share(next, tiles, [&](Size tile) {
      const Size n0 = tile % across * kPoints, k0 = tile / across * kTokens;
      if (!w) return forward_tile<true, 0>(p, out, n0, k0, 0);
      if (rows == hidden) return forward_channels<false>(p, out, n0, k0);
      forward_channels<true>(p, out, n0, k0);
    });
  });
}

// What a part of the points adds to the gradients of kTokens rows of b, of the bias and of w.
struct Part {
  float *b, *bias, *w;
  static Size floats(Size hidden, Size channels, Size rows) { return (kTokens + 1) * rows + channels * hidden; }
  Part(float* scratch, Size part, const Problem& p) {
    b = scratch + part * floats(p.hidden, p.channels, p.rows);
    bias = b + kTokens * p.rows;
    w = bias + p.rows;
  }
};

struct Gradients {
  const float* half;  // of that of out, as twice GELU and twice its derivative are at hand
  float *a, *b, *r, *bias, *w;
};

// STEP points and one token, whose row of the part's b is given.
template <int STEP, bool GATED, int CHANNELS>
static inline void backward_cells(const Problem& p, const Gradients& grads, const Part& part, float* part_b, Size n,
                                  Size k) {
  const Size gates = p.rows - p.hidden, channels = CHANNELS > 0 ? CHANNELS : p.channels;
  const float *b = p.b + k * p.rows, *a = p.a + n * p.rows, *r = p.r + k * p.points + n;
  const float* grad = grads.half + (k * p.points + n) * channels;
  float* grad_a = grads.a + n * p.rows;
  Lanes grad_r[STEP] = {};
  for (Size m = 0; m < p.hidden; m += kLanes) {
    Lanes sum_bu = {}, sum_bg = {}, sum_biasu = {}, sum_biasg = {}, gated[STEP], inner[STEP] = {};
    Lanes hu[STEP] = {}, hg[STEP], u[STEP] = {}, gelu[STEP], slope[STEP];
#pragma GCC unroll 8
    for (int i = 0; i < STEP; ++i) {
      const float* ai = a + i * p.rows + m;
      hg[i] = at(ai + gates) + at(b + gates + m);
      const Gate gate(hg[i] * r[i] + at(p.bias + gates + m));
      gelu[i] = gate.twice_gelu();
      slope[i] = gate.twice_slope();
      if (GATED) {
        hu[i] = at(ai) + at(b + m);
        u[i] = hu[i] * r[i] + at(p.bias + m);
      }
      gated[i] = GATED ? u[i] * gelu[i] : gelu[i];
      if (!CHANNELS) inner[i] = Lanes{} + grad[i];
    }
    if (CHANNELS) {
#pragma GCC unroll 4
      for (Size c = 0; c < channels; ++c) {
        const Lanes w = at(p.w + c * p.hidden + m);
        Lanes sum = {};
#pragma GCC unroll 8
        for (int i = 0; i < STEP; ++i) {
          inner[i] += grad[i * channels + c] * w;
          sum += grad[i * channels + c] * gated[i];
        }
        add(part.w + c * p.hidden + m, sum);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < STEP; ++i) {
      const Lanes gg = (GATED ? inner[i] * u[i] : inner[i]) * slope[i], scaled_g = gg * r[i];
      grad_r[i] += gg * hg[i];
      sum_biasg += gg;
      sum_bg += scaled_g;
      add(grad_a + i * p.rows + gates + m, scaled_g);
      if (GATED) {
        const Lanes gu = inner[i] * gelu[i], scaled_u = gu * r[i];
        grad_r[i] += gu * hu[i];
        sum_biasu += gu;
        sum_bu += scaled_u;
        add(grad_a + i * p.rows + m, scaled_u);
      }
    }
    add(part.bias + gates + m, sum_biasg);
    add(part_b + gates + m, sum_bg);
    if (GATED) {
      add(part.bias + m, sum_biasu);
      add(part_b + m, sum_bu);
    }
  }
  for (int i = 0; i < STEP; ++i) grads.r[k * p.points + n + i] = total(grad_r[i]);
}

template <bool GATED, int CHANNELS>
static void backward_part(const Problem& p, const Gradients& grads, const Part& part, Size n0, Size n1, Size k0,
                          Size k1) {
  for (Size k = k0; k < k1; ++k) {
    float* part_b = part.b + (k - k0) * p.rows;
    Size n = n0;
    for (; n + kStep <= n1; n += kStep) backward_cells<kStep, GATED, CHANNELS>(p, grads, part, part_b, n, k);
    for (; n < n1; ++n) backward_cells<1, GATED, CHANNELS>(p, grads, part, part_b, n, k);
  }
}

// CHANNELS: 0 is one channel whose w is in u, -1 any number.
static void backward_part(const Problem& p, const Gradients& grads, const Part& part, Size n0, Size n1, Size k0,
                          Size k1) {
  if (!p.w) return backward_part<true, 0>(p, grads, part, n0, n1, k0, k1);
  if (p.rows == p.hidden) return backward_part<false, -1>(p, grads, part, n0, n1, k0, k1);
  if (p.channels == 3) return backward_part<true, 3>(p, grads, part, n0, n1, k0, k1);
  backward_part<true, -1>(p, grads, part, n0, n1, k0, k1);
}

// Floats of scratch that `backward` needs for each of its parts.
extern "C" Size scratch_per_part(Size hidden, Size channels, Size rows) {
  return Part::floats(hidden, channels, rows);
}

// Gradients of a, b, r, bias and w. Each part owns a range of points, hence its rows of grad_a and columns of
// grad_r; what it adds to the other gradients it keeps in its scratch, summed over parts after every kTokens tokens.
// half_grad is half the gradient of out.
extern "C" void backward(const float* a, const float* b, const float* r, const float* bias, const float* w,
                         const float* half_grad, float* grad_a, float* grad_b, float* grad_r, float* grad_bias,
                         float* grad_w, float* scratch, Size parts, Size tokens, Size points, Size hidden,
                         Size channels, Size rows, int threads) {
  const Problem p{a, b, r, bias, w, tokens, points, hidden, channels, rows};
  const Gradients grads{half_grad, grad_a, grad_b, grad_r, grad_bias, grad_w};
  const Size windows = (tokens + kTokens - 1) / kTokens, stride = Part::floats(hidden, channels, rows);
  const auto sum_parts = [=](const float* x, float* y, Size n) {
    clear(y, n);
    for (Size part = 0; part < parts; ++part)
      for (Size i = 0; i < n; i += kLanes) add(y + i, at(x + part * stride + i));
  };
  clear(grad_a, points * rows);
  clear(scratch, parts * stride);
  threads = std::max<Size>(1, std::min<Size>(threads, parts));
  std::vector<std::atomic<Size>> next(2 * windows);
  for (auto& counter : next) counter = 0;
  Barrier barrier(threads);
  together(threads, [&] {
    for (Size window = 0; window < windows; ++window) {
      const Size k0 = window * kTokens, k1 = std::min(tokens, k0 + kTokens);
      share(next[2 * window], parts, [&](Size i) {
        const Part part(scratch, i, p);
        clear(part.b, kTokens * rows);
        backward_part(p, grads, part, i * points / parts, (i + 1) * points / parts, k0, k1);
      });
      barrier.wait();
      share(next[2 * window + 1], k1 - k0, [&](Size k) {
        sum_parts(scratch + k * rows, grad_b + (k0 + k) * rows, rows);
      });
      barrier.wait();
    }
  });
  const Part first(scratch, 0, p);
  sum_parts(first.bias, grad_bias, rows);
  if (w) sum_parts(first.w, grad_w, channels * hidden);
}

// GELU and its derivative alone, to measure their errors; n is a multiple of 16.
extern "C" void approximations(const float* g, float* gelu, float* slope, Size n) {
  clear(gelu, n);
  clear(slope, n);
  for (Size i = 0; i < n; i += kLanes) {
    const Gate gate(at(g + i));
    add(gelu + i, 0.5f * gate.twice_gelu());
    add(slope + i, 0.5f * gate.twice_slope());
  }
}

// The floor of any of this: `count` gated units summed, operands (u and g, kBare each) in L1. Returns their sum, and
// reads its operands anew each time, so that no compiler leaves the work out.
constexpr Size kBare = 256;
extern "C" float bare_gated_sum(const float* u, const float* g, Size count, int threads) {
  constexpr Size kTasks = 64;
  float sums[kTasks];
  std::atomic<Size> next{0};
  together(threads, [&] {
    share(next, kTasks, [&](Size task) {
      Lanes sum = {};
      for (Size i = 0; i < count / kTasks / kBare; ++i) {
        for (Size m = 0; m < kBare; m += kLanes) sum += at(u + m) * Gate(at(g + m)).twice_gelu();
        asm volatile("" ::: "memory");
      }
      sums[task] = total(sum);
    });
  });
  float sum = 0;
  for (float part : sums) sum += part;
  return sum;
}

// Floats in a register, as compiled.
extern "C" int lanes() { return kLanes; }

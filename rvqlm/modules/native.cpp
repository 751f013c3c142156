// One step of decoding as a list of operations that is run by one call: what takes the time is to
// read the weights, once for all rows, and nothing is between that.
//
// Rows are sequences, and no sum depends on how many there are. All between products is float32.
// Weights lie in blocks of 64 outputs: block, unit, output, 1 or 2 inputs; a unit is the inputs
// that one instruction takes of an output: one of float32, two of the other types.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if !defined(__AVX512BF16__) || !defined(__AVX512VNNI__) || !defined(__AVX512BW__)
#error "this CPU has no AVX-512 with BF16 and VNNI"
#endif

enum Kind : int32_t { NORM, PRODUCT, SWIGLU, ATTENTION };
enum Type : int32_t { FLOAT32, BFLOAT16, INT8 };
constexpr int64_t AHEAD = 1 << 13;  // bytes of matrices that are asked for before it is their turn
enum Activation : int32_t { NONE, GELU, RELU, RELU2 };

struct Operation {  // `_Operation` of native.py
  int32_t kind, type, activation, add;  // type of weights, or of keys and values
  int64_t in, out;        // widths of x and y
  const float *x;         // (rows, in)
  float *y;               // (rows, out)
  const void *weight;     // of a product; of a norm float32 (in)
  const float *scale;     // (out) of int8 weights
  const float *bias;      // (out) or null
  float eps;              // of a norm
  int32_t centred;        // of a norm: layer norm, else RMS
  // attention; x holds queries, or queries, keys and values where steps are written
  int64_t heads, kv_heads;      // of queries; of keys and values, each for as many queries
  int64_t width, steps;         // of a head; steps of a row that there is room for
  int64_t of_row, of_head, of_step;  // strides of keys and values
  void *keys, *values;    // of `type`
  const float *mask;      // (rows, steps) added to scores: 0 or -inf; or null
  const float *rotary;    // (places, 2, width): cosines, signed sines; or null
  int32_t writes;         // this step's keys and values, at `rows_at`
};

struct Call {  // `_Call` of native.py
  int64_t rows;
  const int64_t *rows_at;  // (rows) row * steps + the step that is written
  const int64_t *places;   // (rows) on the time axis
  float *scratch;          // (threads, room)
  int64_t room;
  int32_t threads;
};

// ------------------------------------------------------------------------------- scalar functions

static inline float exp_(float x) {  // within 2 ulp; 0 below -87, that of 88 above
  const float to = std::min(std::max(x, -87.0f), 88.0f);
  const float n = std::nearbyint(to * 1.44269504f);
  const float r = std::fma(n, -1.42860677e-6f, std::fma(n, -0.693145752f, to));
  float p = std::fma(r, 1 / 5040.0f, 1 / 720.0f);
  p = std::fma(p, r, 1 / 120.0f), p = std::fma(p, r, 1 / 24.0f), p = std::fma(p, r, 1 / 6.0f);
  p = std::fma(p, r, 0.5f), p = std::fma(p, r, 1.0f), p = std::fma(p, r, 1.0f);
  const int32_t power = (int32_t(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &power, 4);
  return x < -87.0f ? 0.0f : p * scale;
}

static inline float gelu(float x) {  // erf of Abramowitz and Stegun, 7.1.26: within 1.5e-7
  const float z = std::fabs(x) * 0.70710678f, t = 1 / (1 + 0.3275911f * z);
  const float p = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f +
                  t * (-1.453152027f + t * 1.061405429f))));
  const float half = 0.5f * p * exp_(-z * z);
  return x * (x < 0 ? half : 1 - half);
}

// ----------------------------------------------------------------------------------------- product

struct Float32 {
  using Sum = __m512;
  static constexpr int64_t inputs = 1, bytes = 256, chunk = INT64_MAX;
  static constexpr int tile = 6;  // rows at a time: what there are registers for
  static Sum zero() { return _mm512_setzero_ps(); }
  static __m512i load(const uint8_t *w, int j) { return _mm512_load_si512(w + 64 * j); }
  static Sum add(Sum s, __m512i w, int32_t x) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(_mm512_set1_epi32(x)), s);
  }
  static __m512 value(Sum s) { return s; }
  static float convert(const float *x, int64_t in, int32_t *units) {
    std::memcpy(units, x, 4 * in);
    return 1;
  }
};

struct BFloat16 : Float32 {
  static constexpr int64_t inputs = 2;
  static Sum add(Sum s, __m512i w, int32_t x) {
    return _mm512_dpbf16_ps(s, (__m512bh)w, (__m512bh)_mm512_set1_epi32(x));
  }
  static float convert(const float *x, int64_t in, int32_t *units) {
    uint16_t *to = (uint16_t *)units;
    for (int64_t i = 0; i < in; i += 16) {
      const __mmask16 inside = in - i < 16 ? (1 << (in - i)) - 1 : 0xffff;
      const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(inside, x + i));
      _mm256_storeu_si256((__m256i *)(to + i), (__m256i)rounded);
    }
    return 1;
  }
};

// The row is made integers of 16 bits; its products with 512 weights are exact in 32 bits.
struct Int8 {
  using Sum = __m512i;
  static constexpr int64_t inputs = 2, bytes = 128, chunk = 256;
  static constexpr int tile = 4;
  static Sum zero() { return _mm512_setzero_si512(); }
  static __m512i load(const uint8_t *w, int j) {
    return _mm512_cvtepi8_epi16(_mm256_load_si256((const __m256i *)(w + 32 * j)));
  }
  static Sum add(Sum s, __m512i w, int32_t x) {
    return _mm512_dpwssd_epi32(s, w, _mm512_set1_epi32(x));
  }
  static __m512 value(Sum s) { return _mm512_cvtepi32_ps(s); }
  static float convert(const float *x, int64_t in, int32_t *units) {
    int16_t *to = (int16_t *)units;
    float most = 0;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < in; i++) most = std::max(most, std::fabs(x[i]));
    const float factor = most > 0 ? 32767 / most : 0;
#pragma omp simd
    for (int64_t i = 0; i < in; i++) to[i] = int16_t(std::nearbyint(x[i] * factor));
    if (in % 2) to[in] = 0;
    return most / 32767;
  }
};

// 64 outputs of M rows.
template <class T, int M>
static void block(const uint8_t *w, const int32_t *x, int64_t units, int64_t stride, float *out) {
  __m512 total[M][4];
  for (auto &row : total)
    for (auto &t : row) t = _mm512_setzero_ps();
  for (int64_t u = 0; u < units;) {
    typename T::Sum sum[M][4];
    for (auto &row : sum)
      for (auto &s : row) s = T::zero();
    const int64_t end = units - u < T::chunk ? units : u + T::chunk;
    for (; u < end; u++, w += T::bytes) {
      for (int64_t i = 0; i < T::bytes; i += 64) _mm_prefetch(w + AHEAD + i, _MM_HINT_T0);
      const __m512i weight[4] = {T::load(w, 0), T::load(w, 1), T::load(w, 2), T::load(w, 3)};
      for (int m = 0; m < M; m++)
        for (int j = 0; j < 4; j++) sum[m][j] = T::add(sum[m][j], weight[j], x[m * stride + u]);
    }
    for (int m = 0; m < M; m++)
      for (int j = 0; j < 4; j++) total[m][j] = _mm512_add_ps(total[m][j], T::value(sum[m][j]));
  }
  for (int m = 0; m < M; m++)
    for (int j = 0; j < 4; j++) _mm512_storeu_ps(out + 64 * m + 16 * j, total[m][j]);
}

static void finish(const Operation &o, const float *sum, float scale, int64_t first, int64_t n,
                   float *y) {
  float v[64];
  const float *weights = o.scale, *bias = o.bias;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    v[i] = weights ? sum[i] * (scale * weights[first + i]) : sum[i];
    if (bias) v[i] += bias[first + i];
  }
  if (o.activation == GELU) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) v[i] = gelu(v[i]);
  } else if (o.activation != NONE) {
    const bool square = o.activation == RELU2;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      const float positive = std::max(v[i], 0.0f);
      v[i] = square ? positive * positive : positive;
    }
  }
  if (o.add)
    for (int64_t i = 0; i < n; i++) y[i] += v[i];
  else
    for (int64_t i = 0; i < n; i++) y[i] = v[i];
}

template <class T>
static void product(const Operation &o, const Call &c, int thread) {
  constexpr int TILE = T::tile;
  const int64_t units = (o.in + T::inputs - 1) / T::inputs, stride = (units + 15) / 16 * 16;
  int32_t *x = (int32_t *)(c.scratch + thread * c.room);
  float *scales = (float *)(x + c.rows * stride), sums[64 * TILE];
  for (int64_t m = 0; m < c.rows; m++) {
    scales[m] = T::convert(o.x + m * o.in, o.in, x + m * stride);
  }
  const int64_t blocks = (o.out + 63) / 64;
  for (int64_t b = blocks * thread / c.threads; b < blocks * (thread + 1) / c.threads; b++) {
    const uint8_t *w = (const uint8_t *)o.weight + b * units * T::bytes;
    for (int64_t m = 0; m < c.rows; m += TILE) {
      const int64_t rows = std::min<int64_t>(TILE, c.rows - m);
      const int32_t *of = x + m * stride;
      if (rows == 1) block<T, 1>(w, of, units, stride, sums);
      if (rows == 2) block<T, 2>(w, of, units, stride, sums);
      if (rows == 3) block<T, 3>(w, of, units, stride, sums);
      if (rows == 4) block<T, 4>(w, of, units, stride, sums);
      if constexpr (TILE > 4) {
        if (rows == 5) block<T, 5>(w, of, units, stride, sums);
        if (rows == 6) block<T, 6>(w, of, units, stride, sums);
      }
      const int64_t first = 64 * b, n = std::min<int64_t>(64, o.out - first);
      for (int64_t r = 0; r < rows; r++)
        finish(o, sums + 64 * r, scales[m + r], first, n, o.y + (m + r) * o.out + first);
    }
  }
}

// --------------------------------------------------------------------------------------- the others

static void norm(const Operation &o, const Call &c, int thread) {
  const float *gain = (const float *)o.weight;
  for (int64_t m = thread; m < c.rows; m += c.threads) {
    const float *x = o.x + m * o.in;
    float *y = o.y + m * o.in, mean = 0, square = 0;
    if (o.centred) {
#pragma omp simd reduction(+ : mean)
      for (int64_t i = 0; i < o.in; i++) mean += x[i];
      mean /= o.in;
    }
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < o.in; i++) square += (x[i] - mean) * (x[i] - mean);
    const float factor = 1 / std::sqrt(square / o.in + o.eps);
#pragma omp simd
    for (int64_t i = 0; i < o.in; i++) y[i] = (x[i] - mean) * factor * gain[i];
  }
}

static void swiglu(const Operation &o, const Call &c, int thread) {
  for (int64_t m = thread; m < c.rows; m += c.threads) {
    const float *x = o.x + m * o.in;
    float *y = o.y + m * o.out;
#pragma omp simd
    for (int64_t i = 0; i < o.out; i++) y[i] = x[i] / (1 + exp_(-x[i])) * x[o.out + i];
  }
}

static void turn(const float *x, const float *table, int64_t width, float factor, float *to) {
  for (int64_t i = 0; i < width; i++) {
    const float other = x[i < width / 2 ? i + width / 2 : i - width / 2];
    to[i] = factor * (table ? x[i] * table[i] + other * table[width + i] : x[i]);
  }
}

static void store(float *to, const float *x, int64_t n) { std::memcpy(to, x, 4 * n); }
static void store(uint16_t *to, const float *x, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 inside = n - i < 16 ? (1 << (n - i)) - 1 : 0xffff;
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(inside, x + i));
    _mm256_mask_storeu_epi16(to + i, inside, (__m256i)rounded);
  }
}

// Keys and values of a type, a vector at a time: `parts` vectors of float32 are needed to weigh one.
template <class E>
struct Held;

template <>
struct Held<float> {
  static constexpr int width = 16, parts = 1;
  using Query = __m512;
  using Mask = __mmask16;
  static Query query(const float *x) { return _mm512_loadu_ps(x); }
  static __m512 dot(__m512 s, Query q, Mask inside, const float *key) {
    return _mm512_fmadd_ps(q, _mm512_maskz_loadu_ps(inside, key), s);
  }
  static void weigh(__m512 p, Mask inside, const float *value, __m512 *y) {
    *y = _mm512_fmadd_ps(p, _mm512_maskz_loadu_ps(inside, value), *y);
  }
  static void in_order(__m512 *) {}
};

template <>
struct Held<uint16_t> {
  static constexpr int width = 32, parts = 2;
  struct Query {  // two bf16 for each number hold 16 of its bits
    __m512bh high, low;
  };
  using Mask = __mmask32;
  static __m512 wide(__m256bh x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16));
  }
  static Query query(const float *x) {
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    const __m256bh high_a = _mm512_cvtneps_pbh(a), high_b = _mm512_cvtneps_pbh(b);
    const __m512 low_a = _mm512_sub_ps(a, wide(high_a)), low_b = _mm512_sub_ps(b, wide(high_b));
    return {_mm512_cvtne2ps_pbh(b, a), _mm512_cvtne2ps_pbh(low_b, low_a)};
  }
  static __m512 dot(__m512 s, const Query &q, Mask inside, const uint16_t *key) {
    const __m512bh k = (__m512bh)_mm512_maskz_loadu_epi16(inside, key);
    return _mm512_dpbf16_ps(_mm512_dpbf16_ps(s, k, q.low), k, q.high);
  }
  static void weigh(__m512 p, Mask inside, const uint16_t *value, __m512 *y) {  // even, then odd
    const __m512i v = _mm512_maskz_loadu_epi16(inside, value);
    y[0] = _mm512_fmadd_ps(p, _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)), y[0]);
    const __m512i odd = _mm512_and_si512(v, _mm512_set1_epi32(0xffff0000));
    y[1] = _mm512_fmadd_ps(p, _mm512_castsi512_ps(odd), y[1]);
  }
  static void in_order(__m512 *y) {
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const __m512 even = y[0], odd = y[1];
    y[0] = _mm512_permutex2var_ps(even, low, odd), y[1] = _mm512_permutex2var_ps(even, high, odd);
  }
};

constexpr int STEPS = 16, SPAN = 64;  // of attention at a time: a vector of scores; most of them
constexpr int64_t NEAR = 24576;  // bytes of keys and values that are walked through head by head

// The sums of 16 vectors, each halved with another four times.
static inline __attribute__((always_inline)) __m512 sums_of(const __m512 *x) {
  __m512 a[8], b[4], c[2];
  for (int i = 0; i < 8; i++)
    a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x[i], x[i + 8], 0x44),
                         _mm512_shuffle_f32x4(x[i], x[i + 8], 0xee));
  for (int i = 0; i < 4; i++)
    b[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i], a[i + 4], 0x88),
                         _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd));
  for (int i = 0; i < 2; i++)
    c[i] = _mm512_add_ps(_mm512_unpacklo_ps(b[i], b[i + 2]), _mm512_unpackhi_ps(b[i], b[i + 2]));
  const __m512d low = _mm512_castps_pd(c[0]), high = _mm512_castps_pd(c[1]);
  const __m512 sums = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
                                    _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
  return _mm512_permutexvar_ps(
      _mm512_set_epi32(15, 13, 14, 12, 7, 5, 6, 4, 11, 9, 10, 8, 3, 1, 2, 0), sums);
}

// For what comes next: the steps of a page are too few for the CPU to see the pattern.
template <class E>
static inline void ask(const E *k, const E *v, int64_t width) {
  for (int64_t i = 0; i < width; i += 64 / sizeof(E)) {
    _mm_prefetch((const char *)(k + i), _MM_HINT_T0);
    _mm_prefetch((const char *)(v + i), _MM_HINT_T0);
  }
}

// G heads of queries, C vectors wide, that attend to some steps of the same keys and values, which
// are read once for all: first all scores, then what they weigh, so that few sums wait for another.
// Sums so far are of exp(score - most so far), every STEPS steps (Milakov & Gimelshein, 2018,
// arXiv:1805.02867).
template <int C, int G, class E, class Inside>
static void attend_steps(const float *query, const E *k, const E *v, const Operation &o, int count,
                         int64_t span, int64_t left, const __mmask16 *hidden, Inside inside,
                         float *most, float *total, float *sums) {
  using H = Held<E>;
  constexpr int padded = C * H::width, parts = C * H::parts, N = STEPS / G;
  float weights[G][SPAN], before[G][SPAN / STEPS];
  for (int first = 0; first < count; first += N) {
    __m512 each[STEPS];  // of N steps, query after query
    for (auto &s : each) s = _mm512_setzero_ps();
    for (int i = 0; i < C; i++) {
      typename H::Query q[G];
      for (int g = 0; g < G; g++) q[g] = H::query(query + g * padded + i * H::width);
      for (int n = 0; n < N; n++) {
        const E *key = k + std::min(first + n, count - 1) * o.of_step + i * H::width;
        for (int g = 0; g < G; g++)
          each[g * N + n] = H::dot(each[g * N + n], q[g], inside(i), key);
      }
    }
    float found[STEPS];
    _mm512_storeu_ps(found, sums_of(each));
    for (int g = 0; g < G; g++) std::memcpy(weights[g] + first, found + g * N, 4 * N);
  }
  for (int g = 0; g < G; g++)
    for (int first = 0; first < count; first += STEPS) {
      float *w = weights[g] + first;
      const __m512 scores = _mm512_mask_mov_ps(_mm512_loadu_ps(w), hidden[first / STEPS],
                                               _mm512_set1_ps(-3e38f));
      const float highest = std::max(most[g], _mm512_reduce_max_ps(scores));
      _mm512_storeu_ps(w, scores);
#pragma omp simd
      for (int n = 0; n < STEPS; n++) w[n] = exp_(w[n] - highest);
      const int here = std::min(STEPS, count - first);
      const __m512 all = _mm512_maskz_loadu_ps(__mmask16((1 << here) - 1), w);
      const float by = highest > most[g] ? exp_(most[g] - highest) : 1;
      total[g] = total[g] * by + _mm512_reduce_add_ps(all);
      most[g] = highest, before[g][first / STEPS] = by;
    }
  for (int first = 0; first < count; first += STEPS) {
    __m512 sum[G][parts];
    for (int g = 0; g < G; g++)
      for (int i = 0; i < parts; i++)
        sum[g][i] = _mm512_mul_ps(_mm512_set1_ps(before[g][first / STEPS]),
                                  _mm512_loadu_ps(sums + g * padded + 16 * i));
    for (int n = first; n < std::min(first + STEPS, count); n++) {
      if (n + span < left) ask(k + (n + span) * o.of_step, v + (n + span) * o.of_step, o.width);
      for (int i = 0; i < C; i++)
        for (int g = 0; g < G; g++)
          H::weigh(_mm512_set1_ps(weights[g][n]), inside(i), v + n * o.of_step + i * H::width,
                   sum[g] + i * H::parts);
    }
    for (int g = 0; g < G; g++)
      for (int i = 0; i < parts; i++) _mm512_storeu_ps(sums + g * padded + 16 * i, sum[g][i]);
  }
}

// Some heads of one row, from `first_head` on. Keys and values are walked through once, as they lie
// in memory, some steps of all heads at a time.
template <int C, class E>
static void attend(const Operation &o, const float *query, const E *keys, const E *values,
                   const float *mask, int64_t steps, int64_t first_head, int64_t heads,
                   float *scratch, float *y) {
  using H = Held<E>;
  constexpr int padded = C * H::width, parts = C * H::parts;
  constexpr int most_at_once = 16 / parts;  // what there are registers for
  const int64_t rest = o.width - (C - 1) * H::width, group = o.heads / o.kv_heads;
  const typename H::Mask last = rest == H::width ? -1 : (typename H::Mask(1) << rest) - 1;
  auto inside = [last](int i) { return i < C - 1 ? typename H::Mask(-1) : last; };
  float *most = scratch, *total = most + heads, *sums = total + heads;
  std::fill(most, total, -3e38f);
  std::memset(total, 0, 4 * heads * (1 + padded));
  const int64_t fit = NEAR / (o.of_step * sizeof(E)) / STEPS * STEPS;
  const int64_t span = std::min<int64_t>(std::max<int64_t>(fit, STEPS), SPAN);
  for (int64_t h = first_head / group; h <= (first_head + heads - 1) / group; h++)
    for (int64_t n = 0; n < std::min(span, steps); n++)
      ask(keys + n * o.of_step + h * o.of_head, values + n * o.of_step + h * o.of_head, o.width);
  for (int64_t first = 0; first < steps; first += span) {
    const int count = std::min(span, steps - first);
    __mmask16 hidden[SPAN / STEPS];
    for (int n = 0; n < count; n += STEPS) {
      const __mmask16 there = count - n < STEPS ? (1 << (count - n)) - 1 : 0xffff;
      __mmask16 not_seen = ~there;
      if (mask) {
        const __m512 m = _mm512_maskz_loadu_ps(there, mask + first + n);
        not_seen |= _mm512_mask_cmp_ps_mask(there, m, _mm512_setzero_ps(), _CMP_LT_OQ);
      }
      hidden[n / STEPS] = not_seen;
    }
    for (int64_t h = 0; h < heads;) {
      const int64_t at = first * o.of_step + (first_head + h) / group * o.of_head;
      const int64_t end = std::min(heads, h + group - (first_head + h) % group);
#define TOGETHER(G)                                                                              \
  if constexpr (G <= most_at_once)                                                               \
    for (; end - h >= G; h += G)                                                                 \
      attend_steps<C, G>(query + h * padded, keys + at, values + at, o, count, span,             \
                         steps - first, hidden, inside, most + h, total + h, sums + h * padded);
      TOGETHER(4) TOGETHER(2) TOGETHER(1)
#undef TOGETHER
    }
  }
  for (int64_t h = 0; h < heads; h++) {
    const __m512 factor = _mm512_set1_ps(1 / total[h]);
    __m512 sum[parts];
    for (int i = 0; i < parts; i++)
      sum[i] = _mm512_mul_ps(factor, _mm512_loadu_ps(sums + h * padded + 16 * i));
    for (int i = 0; i < C; i++) H::in_order(sum + i * H::parts);
    for (int64_t i = 0; 16 * i < o.width; i++) {
      const int64_t left = o.width - 16 * i;
      const __mmask16 some = left < 16 ? (1 << left) - 1 : 0xffff;
      _mm512_mask_storeu_ps(y + h * o.width + 16 * i, some, sum[i]);
    }
  }
}

template <class E>
static void attention(const Operation &o, const Call &c, int thread) {
  constexpr int64_t W = Held<E>::width;
  const int64_t D = o.width, all = o.heads * D, pairs = c.rows * o.heads;
  const int64_t group = o.heads / o.kv_heads;
  const int64_t padded = (D + W - 1) / W * W, end = pairs * (thread + 1) / c.threads;
  float *query = c.scratch + thread * c.room, *of_heads = query + o.heads * padded, turned[128];
  std::memset(query, 0, 4 * o.heads * padded);
  for (int64_t p = pairs * thread / c.threads; p < end;) {
    const int64_t b = p / o.heads, h = p % o.heads, heads = std::min(o.heads - h, end - p);
    const float *x = o.x + b * o.in;
    const float *table = o.rotary ? o.rotary + c.places[b] * 2 * D : nullptr;
    E *keys = (E *)o.keys + b * o.of_row, *values = (E *)o.values + b * o.of_row;
    const int64_t at = o.writes ? c.rows_at[b] - b * o.steps : o.steps - 1;
    for (int64_t i = 0; i < heads; i++)
      turn(x + (h + i) * D, table, D, 1 / std::sqrt(float(D)), query + i * padded);
    // threads that share a head of keys write the same
    for (int64_t i = h / group; o.writes && i <= (h + heads - 1) / group; i++) {
      turn(x + all + i * D, table, D, 1, turned);
      store(keys + at * o.of_step + i * o.of_head, turned, D);
      store(values + at * o.of_step + i * o.of_head, x + all + (o.kv_heads + i) * D, D);
    }
    const float *mask = o.mask ? o.mask + b * o.steps : nullptr;
    float *y = o.y + b * all + h * D;
#define WIDE(C)          \
  if (padded / W == C)   \
    attend<C, E>(o, query, keys, values, mask, at + 1, h, heads, of_heads, y);
    WIDE(1) WIDE(2) WIDE(3) WIDE(4)
    if constexpr (W == 16) {
      WIDE(5) WIDE(6) WIDE(7) WIDE(8)
    }
#undef WIDE
    p += heads;
  }
}

static void operate(const Operation &o, const Call &c, int thread) {
  if (o.kind == NORM) norm(o, c, thread);
  if (o.kind == SWIGLU) swiglu(o, c, thread);
  if (o.kind == ATTENTION && o.type == FLOAT32) attention<float>(o, c, thread);
  if (o.kind == ATTENTION && o.type == BFLOAT16) attention<uint16_t>(o, c, thread);
  if (o.kind != PRODUCT) return;
  if (o.type == FLOAT32) product<Float32>(o, c, thread);
  if (o.type == BFLOAT16) product<BFloat16>(o, c, thread);
  if (o.type == INT8) product<Int8>(o, c, thread);
}

// ---------------------------------------------------------------------------------------- sampling

struct Draw {  // `_Draw` of native.py
  int64_t rows, levels, codes;  // of logits (rows, levels, codes)
  float *logits;
  const float *temperatures;  // (levels); null: the likeliest
  const float *uniform;       // (rows, levels), rows at a distance of `of_uniform`
  int64_t of_uniform;
  int64_t *drawn;        // (rows, levels)
  uint64_t *scratch;     // (threads, 2 * codes + 8): what is kept, and weights
  int64_t top_k;         // 0: all
  float top_p, min_p;
};

// Floats as integers of the same order.
static inline uint32_t ordered(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

static inline float of_ordered(uint32_t key) {
  const uint32_t bits = key ^ (key >> 31 ? 0x80000000u : 0xffffffffu);
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// A high threshold such that more than enough is not below it: `more` says by how much.
template <class More>
static float threshold(float most, More more) {
  uint32_t low = 0x007fffffu, high = ordered(most);  // that of -inf is always enough
  if (more(most) >= 0) return most;
  for (int i = 0; i < 20; i++) {
    const uint32_t middle = low + (high - low) / 2;
    const float by = more(of_ordered(middle));
    (by >= 0 ? low : high) = middle;
    if (by == 0) break;
  }
  return of_ordered(low);
}

// What `sample` of rvqlm/generation/sampling.py draws: the likeliest codes in their order, or all
// as they are numbered, and the first at which the sum of their weights is above a share of it.
static int64_t draw(const Draw &d, const float *logits, float temperature, float uniform,
                    int thread) {
  const int64_t V = d.codes;
  uint64_t *candidates = d.scratch + thread * (2 * V + 8);
  float most = -INFINITY, *w = (float *)(candidates + V);
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < V; i++) most = std::max(most, logits[i]);
  const bool some = d.top_k > 0 && d.top_k < V, sorted = some || d.top_p < 1;
  int64_t kept = V;
  if (sorted) {
    float least = -INFINITY;
    if (some) {
      least = threshold(most, [&](float t) {
        int32_t n = 0;
#pragma omp simd reduction(+ : n)
        for (int64_t i = 0; i < V; i++) n += logits[i] >= t;
        return float(n - d.top_k);
      });
    } else {
      float total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < V; i++) total += w[i] = exp_((logits[i] - most) / temperature);
      const float wanted = d.top_p * total;
      const float weight = threshold(1.0f, [&](float t) {
        float mass = 0;
#pragma omp simd reduction(+ : mass)
        for (int64_t i = 0; i < V; i++) mass += w[i] >= t ? w[i] : 0.0f;
        return mass - wanted;
      });
      least = INFINITY;  // with some to spare: the sum below decides
      for (int64_t i = 0; i < V; i++)
        if (w[i] >= weight * 0.999f) least = std::min(least, logits[i]);
    }
    kept = 0;
    for (int64_t first = 0; first < V; first += 16) {
      const __mmask16 inside = V - first < 16 ? (1 << (V - first)) - 1 : 0xffff;
      const __m512 values = _mm512_maskz_loadu_ps(inside, logits + first);
      uint32_t found = _mm512_mask_cmp_ps_mask(inside, values, _mm512_set1_ps(least), _CMP_GE_OQ);
      for (; found; found &= found - 1) {
        const uint64_t i = first + __builtin_ctz(found);
        candidates[kept++] = uint64_t(~ordered(logits[i])) << 32 | i;
      }
    }
    std::sort(candidates, candidates + kept);
    if (!kept) return 0;  // nothing but NaN
    if (some) kept = std::min(kept, d.top_k);
    for (int64_t i = 0; i < kept; i++) w[i] = logits[uint32_t(candidates[i])];
  } else {
    std::memcpy(w, logits, 4 * V);
  }
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < kept; i++) total += w[i] = exp_((w[i] - most) / temperature);
  if (d.top_p < 1) {
    if (!some) {  // of all, not only of those that were kept
      total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < V; i++) total += exp_((logits[i] - most) / temperature);
    }
    float before = 0;
    int64_t n = 0;
    for (; n < kept && before < d.top_p * total; n++) before += w[n];
    kept = std::max<int64_t>(n, 1);
  }
  double sum = 0, so_far = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < kept; i++) {
    w[i] = w[i] < d.min_p ? 0 : w[i];  // the likeliest has 1
    sum += w[i];
  }
  const double point = uniform * sum;
  int64_t n = 0, last = 0;
  for (; n + 64 < kept; n += 64) {
    double part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = n; i < n + 64; i++) part += w[i];
    if (so_far + part > point) break;
    so_far += part;
  }
  for (; n < kept; n++) {
    if (w[n] > 0) last = n;
    if ((so_far += w[n]) > point) break;
  }
  if (n == kept) n = last;
  return sorted ? int64_t(uint32_t(candidates[n])) : n;
}

// All codes of this thread.
static void draws(const Draw &d, int threads, int thread) {
  const int64_t all = d.rows * d.levels;
  for (int64_t i = all * thread / threads; i < all * (thread + 1) / threads; i++) {
    const float *logits = d.logits + i * d.codes;
    const int64_t row = i / d.levels, level = i % d.levels;
    if (d.temperatures)
      d.drawn[i] = draw(d, logits, d.temperatures[level], d.uniform[row * d.of_uniform + level],
                        thread);
    else
      d.drawn[i] = std::max_element(logits, logits + d.codes) - logits;
  }
}

extern "C" void sample(const Draw *call) { draws(*call, 1, 0); }

// --------------------------------------------------------------------------------- from code to code

struct Frame {  // `_Frame` of native.py: what a step reads and leaves of its sequences
  int64_t sequences, levels, width, special;
  int64_t *column;         // (sequences, levels) codes: of the step before, then of this
  const float *tables;     // (ids of all levels, width)
  const int64_t *offsets;  // (levels) where those of a level begin
  float *x;                // (rows, width), what the operations begin with
  const float *added;      // (rows, steps, width) or null
  int64_t added_steps;
  float *mask;                // (rows, steps of the cache)
  int64_t *rows_at, *held;    // (rows) as of `Call`, and steps held; moved on by one
  const int64_t *lead;        // (rows) steps in front of the first
  int64_t *places;            // (rows) room for those of `Call`
  const float *end;           // (rows) logits of an end, or null
  float guidance;             // where rows are twice the sequences
  int64_t *lengths;           // (sequences)
  int64_t *grid;              // (columns, levels)
  const int64_t *follows;     // (sequences) whose codes are a sequence's prompt; or null
  // the step's own, of rvqlm/generation/decode.py, and distances from sequence to sequence
  const uint8_t *known;
  const int64_t *given, *frames;
  const float *threshold;
  const int64_t *before, *place;
  int64_t of_known, of_given, of_frames, of_threshold, of_before, of_place;
};

static void enter(const Frame &f, const Call &c, int thread) {
  for (int64_t m = thread; m < c.rows; m += c.threads) {
    const int64_t *codes = f.column + m % f.sequences * f.levels;
    float *x = f.x + m * f.width;
    std::memset(x, 0, 4 * f.width);
    for (int64_t k = 0; k < f.levels; k++) {
      const float *of = f.tables + (f.offsets[k] + codes[k]) * f.width;
      for (int64_t i = 0; i < f.width; i++) x[i] += of[i];
    }
    f.places[m] = f.held[m] - f.lead[m];
    if (f.added) {
      const float *more = f.added + (m * f.added_steps + f.places[m]) * f.width;
      for (int64_t i = 0; i < f.width; i++) x[i] += more[i];
    }
    f.mask[f.rows_at[m]] = 0;
  }
}

// With and without a condition: u + guidance * (c - u), where the former lie.
static void guide(const Frame &f, const Draw &d, int threads, int thread) {
  const int64_t all = d.rows * d.levels;
  for (int64_t i = all * thread / threads; i < all * (thread + 1) / threads; i++) {
    float *with = d.logits + i * d.codes;
    const float *without = with + all * d.codes;
    for (int64_t v = 0; v < d.codes; v++)
      with[v] = without[v] + f.guidance * (with[v] - without[v]);
  }
}

static void leave(const Frame &f, const Call &c, const Draw &d) {
  for (int64_t b = 0; b < f.sequences; b++) {
    if (f.end) {
      float end = f.end[b];
      if (c.rows > f.sequences) {
        const float without = f.end[b + f.sequences];
        end = without + f.guidance * (end - without);
      }
      if (end > f.threshold[b * f.of_threshold])
        f.lengths[b] = std::min(f.lengths[b], f.before[b * f.of_before]);
    }
    int64_t *to = f.grid + f.place[b * f.of_place] * f.levels, *column = f.column + b * f.levels;
    for (int64_t k = 0; k < f.levels; k++) {
      const bool known = f.known[b * f.of_known + k];
      const int64_t code = known ? f.given[b * f.of_given + k] : d.drawn[b * f.levels + k];
      const bool inside = f.frames[b * f.of_frames + k] < f.lengths[b];
      to[k] = column[k] = inside ? code : f.special;
    }
  }
  for (int64_t b = 0; f.follows && b < f.sequences; b++)
    for (int64_t k = 0; k < f.levels; k++) {
      const bool inside = f.frames[b * f.of_frames + k] < f.lengths[b];
      if (!f.known[b * f.of_known + k] || !inside) continue;
      const int64_t code = f.column[f.follows[b] * f.levels + k];
      f.grid[f.place[b * f.of_place] * f.levels + k] = f.column[b * f.levels + k] = code;
    }
  for (int64_t m = 0; m < c.rows; m++) f.rows_at[m]++, f.held[m]++;
}

// --------------------------------------------------------------------------------------- the calls

// While something small is done the memory need not wait: the beginning of the next matrix.
static void ahead_of(const Operation *o, const Operation *end, const Call &c, int thread) {
  if (o->kind == PRODUCT) return;
  while (o < end && o->kind != PRODUCT) o++;
  if (o == end) return;
  const int64_t bytes[] = {Float32::bytes, BFloat16::bytes, Int8::bytes};
  const int64_t units = o->type == FLOAT32 ? o->in : (o->in + 1) / 2, blocks = (o->out + 63) / 64;
  const char *w = (const char *)o->weight + blocks * thread / c.threads * units * bytes[o->type];
  const int64_t size = std::min<int64_t>(AHEAD, units * bytes[o->type]);
  for (int64_t i = 0; i < size; i += 64) _mm_prefetch(w + i, _MM_HINT_T1);
}

static void all(const Operation *o, int64_t count, const Call &c, int thread) {
  for (int64_t i = 0; i < count; i++) {
    ahead_of(o + i, o + count, c, thread);
    operate(o[i], c, thread);
    if (c.threads > 1) {
#pragma omp barrier
    }
  }
}

extern "C" void run(const Operation *operations, int64_t count, const Call *call) {
  const Call &c = *call;
  if (c.threads == 1) return all(operations, count, c, 0);
#pragma omp parallel num_threads(c.threads)
  all(operations, count, c, omp_get_thread_num());
}

static void whole(const Operation *operations, int64_t count, const Call &c, const Frame &f,
                  const Draw &d, int thread) {
  auto wait = [&] {
    if (c.threads > 1) {
#pragma omp barrier
    }
  };
  enter(f, c, thread);
  wait();
  all(operations, count, c, thread);
  if (c.rows > f.sequences) guide(f, d, c.threads, thread);
  draws(d, c.threads, thread);
  wait();
  if (thread == 0) leave(f, c, d);
}

extern "C" void frame(const Operation *operations, int64_t count, const Call *call,
                      const Frame *frame, const Draw *draw) {
  const Call &c = *call;
  if (c.threads == 1) return whole(operations, count, c, *frame, *draw, 0);
#pragma omp parallel num_threads(c.threads)
  whole(operations, count, c, *frame, *draw, omp_get_thread_num());
}

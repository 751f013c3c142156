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
  int64_t heads, width, steps;  // heads, their width, steps of a row that there is room for
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
  constexpr int TILE = 4;
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

// Keys and values in float32 or bf16.
static __m512 wide(__mmask16 inside, const float *x) { return _mm512_maskz_loadu_ps(inside, x); }
static __m512 wide(__mmask16 inside, const uint16_t *x) {
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}
static void store(float *to, const float *x, int64_t n) { std::memcpy(to, x, 4 * n); }
static void store(uint16_t *to, const float *x, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 inside = n - i < 16 ? (1 << (n - i)) - 1 : 0xffff;
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(inside, x + i));
    _mm256_mask_storeu_epi16(to + i, inside, (__m256i)rounded);
  }
}

// Some heads of one row, C vectors of 16 wide. Keys and values are walked through once, as they lie
// in memory, some steps of all heads at a time; sums so far are of exp(score - most so far) (Milakov
// & Gimelshein, 2018, arXiv:1805.02867).
constexpr int64_t STEPS = 8;

// Ask for what comes next: the steps of a page are too few for the CPU to see the pattern.
template <int C, class E>
static void ahead(const E *at) {
  for (size_t i = 0; i < C * 16 * sizeof(E); i += 64)
    _mm_prefetch((const char *)at + i, _MM_HINT_T0);
}

template <int C, class E>
static void attend(const Operation &o, const float *query, const E *keys, const E *values,
                   const float *mask, int64_t steps, int64_t heads, float *most, float *y) {
  const __mmask16 last = o.width % 16 ? (1 << o.width % 16) - 1 : 0xffff;
  auto inside = [last](int i) { return i < C - 1 ? __mmask16(0xffff) : last; };
  float *total = most + heads, *scores = total + heads;
  std::fill(most, total, -3e38f);
  std::memset(total, 0, 4 * heads);
  std::memset(y, 0, 4 * heads * o.width);
  for (int64_t first = 0; first < steps; first += STEPS) {
    const int64_t count = std::min(STEPS, steps - first);
    const E *k = keys + first * o.of_step, *v = values + first * o.of_step;
    for (int64_t n = 0; n < count; n++)
      for (int64_t h = 0; h < heads; h++) {
        const E *at = k + n * o.of_step + h * o.of_head;
        ahead<C>(at + STEPS * o.of_step);
        __m512 s = _mm512_setzero_ps();
        for (int i = 0; i < C; i++)
          s = _mm512_fmadd_ps(wide(inside(i), query + h * o.width + 16 * i),
                              wide(inside(i), at + 16 * i), s);
        const bool hidden = mask && mask[first + n] < 0;
        scores[h * STEPS + n] = hidden ? -3e38f : _mm512_reduce_add_ps(s);
      }
    for (int64_t h = 0; h < heads; h++) {
      float highest = most[h], sum = 0, *of = scores + h * STEPS, *to = y + h * o.width;
      for (int64_t n = 0; n < count; n++) highest = std::max(highest, of[n]);
#pragma omp simd reduction(+ : sum)
      for (int64_t n = 0; n < count; n++) sum += of[n] = exp_(of[n] - highest);
      const float before = exp_(most[h] - highest);
      total[h] = total[h] * before + sum, most[h] = highest;
      __m512 y_[C];
      for (int i = 0; i < C; i++)
        y_[i] = _mm512_mul_ps(_mm512_set1_ps(before), wide(inside(i), to + 16 * i));
      for (int64_t n = 0; n < count; n++) {
        const E *at = v + n * o.of_step + h * o.of_head;
        ahead<C>(at + STEPS * o.of_step);
        const __m512 p = _mm512_set1_ps(of[n]);
        for (int i = 0; i < C; i++) y_[i] = _mm512_fmadd_ps(p, wide(inside(i), at + 16 * i), y_[i]);
      }
      for (int i = 0; i < C; i++) _mm512_mask_storeu_ps(to + 16 * i, inside(i), y_[i]);
    }
  }
  for (int64_t h = 0; h < heads; h++)
    for (int64_t i = 0; i < o.width; i++) y[h * o.width + i] /= total[h];
}

template <class E>
static void attention(const Operation &o, const Call &c, int thread) {
  const int64_t D = o.width, all = o.heads * D, pairs = c.rows * o.heads;
  const int64_t end = pairs * (thread + 1) / c.threads;
  float *query = c.scratch + thread * c.room, *of_heads = query + all, turned[128];
  for (int64_t p = pairs * thread / c.threads; p < end;) {
    const int64_t b = p / o.heads, h = p % o.heads, heads = std::min(o.heads - h, end - p);
    const float *x = o.x + b * o.in + h * D;
    const float *table = o.rotary ? o.rotary + c.places[b] * 2 * D : nullptr;
    E *keys = (E *)o.keys + b * o.of_row + h * o.of_head;
    E *values = (E *)o.values + b * o.of_row + h * o.of_head;
    const int64_t at = o.writes ? c.rows_at[b] - b * o.steps : o.steps - 1;
    for (int64_t i = 0; i < heads; i++) {
      turn(x + i * D, table, D, 1 / std::sqrt(float(D)), query + i * D);
      if (!o.writes) continue;
      turn(x + all + i * D, table, D, 1, turned);
      store(keys + at * o.of_step + i * o.of_head, turned, D);
      store(values + at * o.of_step + i * o.of_head, x + 2 * all + i * D, D);
    }
    const float *mask = o.mask ? o.mask + b * o.steps : nullptr;
    float *y = o.y + b * all + h * D;
#define WIDE(C) \
  if ((D + 15) / 16 == C) attend<C, E>(o, query, keys, values, mask, at + 1, heads, of_heads, y);
    WIDE(1) WIDE(2) WIDE(3) WIDE(4) WIDE(5) WIDE(6) WIDE(7) WIDE(8)
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
  const float *logits, *temperatures;  // (levels)
  const float *uniform;                // (rows, levels)
  int64_t *drawn;                      // (rows, levels)
  uint64_t *scratch;                   // (codes)
  float *weights;                      // (codes + 16)
  int64_t top_k;                       // 0: all
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
static int64_t draw(const Draw &d, const float *logits, float temperature, float uniform) {
  const int64_t V = d.codes;
  float most = -INFINITY, *w = d.weights;
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
        d.scratch[kept++] = uint64_t(~ordered(logits[i])) << 32 | i;
      }
    }
    std::sort(d.scratch, d.scratch + kept);
    if (!kept) return 0;  // nothing but NaN
    if (some) kept = std::min(kept, d.top_k);
    for (int64_t i = 0; i < kept; i++) w[i] = logits[uint32_t(d.scratch[i])];
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
  return sorted ? int64_t(uint32_t(d.scratch[n])) : n;
}

extern "C" void sample(const Draw *call) {
  const Draw &d = *call;
  for (int64_t i = 0; i < d.rows * d.levels; i++)
    d.drawn[i] = draw(d, d.logits + i * d.codes, d.temperatures[i % d.levels], d.uniform[i]);
}

extern "C" void run(const Operation *operations, int64_t count, const Call *call) {
  const Call &c = *call;
  if (c.threads == 1) {
    for (int64_t i = 0; i < count; i++) operate(operations[i], c, 0);
    return;
  }
#pragma omp parallel num_threads(c.threads)
  for (int64_t i = 0; i < count; i++) {
    operate(operations[i], c, omp_get_thread_num());
#pragma omp barrier
  }
}

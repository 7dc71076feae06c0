// Products with sparse kernels, as TensorFlow operations for the CPU.
//
// A kernel has Keras's layout, [inputs, outputs]. Of its entries only the active ones exist: an
// array `values`, sorted by place, where the place of (input, output) is input * outputs + output.
// Where they are is said twice, so that no product ever searches or writes to one sum from two
// threads:
//
//   by inputs    row_splits [inputs + 1], columns [n]: the values of input c are those from
//                row_splits[c] to row_splits[c + 1], and columns[i] is the output of value i;
//   by outputs   column_splits [outputs + 1], rows [n], order [n]: the entries of output o are
//                those from column_splits[o] to column_splits[o + 1]; entry j belongs to input
//                rows[j] and is the value order[j].
//
// The batch is worked on in tiles of up to 64 rows. A tile is transposed first: the 64 numbers of
// one input lie side by side then, and one weight multiplies them as four vectors of 16.
//
// Every sum is computed by one thread in one order, which depends on the shapes alone. So results
// are the same to the last bit whatever the number of threads is. They may differ in rounding
// between kinds of processors.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/platform/denormal.h"
#include "tensorflow/core/platform/mem.h"

#define RIGL_INLINE inline __attribute__((always_inline))

namespace rigl {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

template <typename... Parts>
absl::Status InvalidArgument(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

absl::Status NoMemory() {
  return absl::ResourceExhaustedError("There is no memory for the work on a sparse kernel.");
}

// Widths of tiles are multiples of this, whatever the processor.
constexpr int kStep = 16;
// Outputs or inputs whose results are transposed back together: one cache line of each row.
constexpr int kLine = 16;
// How many places ahead memory is fetched.
constexpr int kAhead = 6;
// Floats of transposed batch that are kept at a time: 16 MiB.
constexpr int64_t kMostScratch = int64_t{1} << 22;

// For tests: fewer threads, or narrower vectors than the processor has.
std::atomic<int> max_threads{std::numeric_limits<int>::max()};
std::atomic<int> max_lanes{std::numeric_limits<int>::max()};

// ---------------------------------------------------------------------------------------------
// Vectors.

template <int L>
struct Lanes {
  typedef float Floats __attribute__((vector_size(4 * L)));
  typedef int32_t Integers __attribute__((vector_size(4 * L)));
  using All = std::make_integer_sequence<int, L>;
};

template <int L>
using Vector = typename Lanes<L>::Floats;

template <int L>
RIGL_INLINE Vector<L> Load(const float* from) {
  Vector<L> vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}

template <int L>
RIGL_INLINE void Store(const Vector<L>& vector, float* to) {
  std::memcpy(to, &vector, sizeof(vector));
}

template <int L>
RIGL_INLINE Vector<L> LoadFirst(const float* from, int64_t count) {
  if (count >= L) return Load<L>(from);
  float padded[L] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
  return Load<L>(padded);
}

template <int L>
RIGL_INLINE void StoreFirst(const Vector<L>& vector, float* to, int64_t count) {
  if (count >= L) return Store<L>(vector, to);
  float padded[L];
  Store<L>(vector, padded);
  for (int64_t i = 0; i < count; ++i) to[i] = padded[i];
}

#if defined(__clang__)
#define RIGL_SHUFFLE(L, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define RIGL_SHUFFLE(L, a, b, ...) __builtin_shuffle(a, b, typename Lanes<L>::Integers{__VA_ARGS__})
#endif

// Of two rows of a matrix, a and the one S below: what is in the upper row after each pair of S x S
// blocks off the diagonal has been swapped.
template <int L, int S, int... I>
RIGL_INLINE Vector<L> Upper(const Vector<L>& a, const Vector<L>& b,
                            std::integer_sequence<int, I...>) {
  return RIGL_SHUFFLE(L, a, b, ((I & S) ? L + (I ^ S) : I)...);
}

// What is in the lower row.
template <int L, int S, int... I>
RIGL_INLINE Vector<L> Lower(const Vector<L>& a, const Vector<L>& b,
                            std::integer_sequence<int, I...>) {
  return RIGL_SHUFFLE(L, a, b, ((I & S) ? L + I : (I ^ S))...);
}

// Transposes an L x L matrix in place.
template <int L, int S = L / 2>
RIGL_INLINE void TransposeSquare(Vector<L>* rows) {
  if constexpr (S > 0) {
    using All = typename Lanes<L>::All;
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      if (i & S) continue;
      const Vector<L> upper = Upper<L, S>(rows[i], rows[i + S], All());
      const Vector<L> lower = Lower<L, S>(rows[i], rows[i + S], All());
      rows[i] = upper;
      rows[i + S] = lower;
    }
    TransposeSquare<L, S / 2>(rows);
  }
}

// Lane i of the result is the sum over vector i. The order is the same for each of them.
template <int L, int S = L / 2>
RIGL_INLINE Vector<L> SumsOf(Vector<L>* vectors) {
  if constexpr (S > 0) {
    using All = typename Lanes<L>::All;
#pragma GCC unroll 16
    for (int i = 0; i < S; ++i) {
      vectors[i] = Upper<L, S>(vectors[i], vectors[i + S], All()) +
                   Lower<L, S>(vectors[i], vectors[i + S], All());
    }
    return SumsOf<L, S / 2>(vectors);
  } else {
    return vectors[0];
  }
}

// to[c][r] = from[r][c] for all c < columns; zero where rows <= r < padded_rows.
struct TransposeJob {
  const float* from;
  int64_t from_stride;
  int64_t rows;
  int64_t columns;
  float* to;
  int64_t to_stride;
  int64_t padded_rows;
};

template <int L>
RIGL_INLINE void Transpose(const TransposeJob& job) {
  for (int64_t c = 0; c < job.columns; c += L) {
    const int64_t columns = std::min<int64_t>(L, job.columns - c);
    for (int64_t r = 0; r < job.padded_rows; r += L) {
      const int64_t rows = job.rows - r;
      Vector<L> square[L];
      if (rows >= L && columns == L) {
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) square[i] = Load<L>(job.from + (r + i) * job.from_stride + c);
      } else {
        for (int i = 0; i < L; ++i) {
          square[i] = i < rows ? LoadFirst<L>(job.from + (r + i) * job.from_stride + c, columns)
                               : Vector<L>{};
        }
      }
      TransposeSquare<L>(square);
      float* to = job.to + c * job.to_stride + r;
      if (columns == L && job.padded_rows - r >= L) {
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) Store<L>(square[i], to + i * job.to_stride);
      } else {
        for (int i = 0; i < columns; ++i) {
          StoreFirst<L>(square[i], to + i * job.to_stride, job.padded_rows - r);
        }
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------
// One tile of the batch.

// to[c] = the sum of from[r][c] over all rows; the job's other numbers are not used.
template <int L>
RIGL_INLINE void SumRows(const TransposeJob& job) {
  for (int64_t c = 0; c < job.columns; c += L) {
    Vector<L> sum = {};
    for (int64_t r = 0; r < job.rows; ++r) {
      sum += LoadFirst<L>(job.from + r * job.from_stride + c, job.columns - c);
    }
    StoreFirst<L>(sum, job.to + c, job.columns - c);
  }
}

// y = x @ kernel + bias for the outputs from `first` to `last`.
struct ForwardJob {
  const int64_t* splits;
  const int32_t* rows;
  const float* values;  // In the order of the outputs.
  const float* x;       // [inputs, width]
  const float* bias;    // [outputs], or null.
  float* y;             // [batch, outputs], at the tile's first row.
  int64_t outputs;
  int64_t batch;  // Rows of the tile that exist, at most `width`.
  int64_t first;
  int64_t last;
  int width;
};

template <int L, int N>
RIGL_INLINE void ForwardOf(const ForwardJob& job) {
  constexpr int kWidth = L * N;
  alignas(64) float sums[kLine * kWidth];
  const int32_t* const rows = job.rows;
  const float* const values = job.values;
  const float* const x_tile = job.x;
  for (int64_t start = job.first; start < job.last; start += kLine) {
    const int64_t count = std::min<int64_t>(kLine, job.last - start);
    for (int64_t k = 0; k < count; ++k) {
      Vector<L> sum[N] = {};
      const int64_t end = job.splits[start + k + 1];
      for (int64_t j = job.splits[start + k]; j < end; ++j) {
        const float* x = x_tile + static_cast<int64_t>(rows[j]) * kWidth;
        const float value = values[j];
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) sum[i] += value * Load<L>(x + i * L);
      }
      const float bias = job.bias == nullptr ? 0.0f : job.bias[start + k];
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) Store<L>(sum[i] + bias, sums + k * kWidth + i * L);
    }
    Transpose<L>({sums, kWidth, count, job.batch, job.y + start, job.outputs, count});
  }
}

// For the inputs from `first` to `last`: dvalues = x^T @ dy at the active places, added to what is
// there unless `overwrite`; and dx = dy @ kernel^T, unless `dx` is null.
struct BackwardJob {
  const int64_t* splits;
  const int32_t* columns;
  const float* values;
  const float* x;   // [inputs, width]
  const float* dy;  // [outputs, width]
  float* dx;        // [batch, inputs], at the tile's first row.
  float* dvalues;
  int64_t inputs;
  int64_t batch;
  int64_t first;
  int64_t last;
  int width;
  bool overwrite;
};

template <int L>
RIGL_INLINE void StoreSums(Vector<L>* products, int64_t count, bool overwrite, float* to) {
  Vector<L> sums = SumsOf<L>(products);
  if (!overwrite) sums = LoadFirst<L>(to, count) + sums;
  StoreFirst<L>(sums, to, count);
}

template <int L, int N, bool kInput>
RIGL_INLINE void BackwardOf(const BackwardJob& job) {
  constexpr int kWidth = L * N;
  alignas(64) float sums[kInput ? kLine * kWidth : 1];
  // The products of L places wait here for their sums over the lanes: L such sums cost little
  // more than one.
  Vector<L> waiting[L] = {};
  int num_waiting = 0;
  float* dvalues = job.dvalues + job.splits[job.first];
  const int32_t* const columns = job.columns;
  const float* const values = job.values;
  const float* const dy_tile = job.dy;
  const bool overwrite = job.overwrite;
  const int64_t last = job.splits[job.last] - 1;
  for (int64_t start = job.first; start < job.last; start += kLine) {
    const int64_t count = std::min<int64_t>(kLine, job.last - start);
    for (int64_t k = 0; k < count; ++k) {
      Vector<L> x[N];
      Vector<L> sum[N] = {};
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) x[i] = Load<L>(job.x + (start + k) * kWidth + i * L);
      const int64_t end = job.splits[start + k + 1];
      for (int64_t j = job.splits[start + k]; j < end; ++j) {
        // Fetched early: the next row of `dy` is anywhere in the tile, so no processor foresees it.
        const float* later =
            dy_tile + static_cast<int64_t>(columns[std::min(j + kAhead, last)]) * kWidth;
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; i += kLine) __builtin_prefetch(later + i);
        const float* from = dy_tile + static_cast<int64_t>(columns[j]) * kWidth;
        const float value = values[j];
        Vector<L> product;
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) {
          const Vector<L> dy = Load<L>(from + i * L);
          if constexpr (kInput) sum[i] += value * dy;
          product = i == 0 ? x[i] * dy : product + x[i] * dy;
        }
        waiting[num_waiting++] = product;
        if (num_waiting == L) {
          StoreSums<L>(waiting, L, overwrite, dvalues);
          dvalues += L;
          num_waiting = 0;
        }
      }
      if constexpr (kInput) {
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) Store<L>(sum[i], sums + k * kWidth + i * L);
      }
    }
    if constexpr (kInput) {
      Transpose<L>({sums, kWidth, count, job.batch, job.dx + start, job.inputs, count});
    }
  }
  StoreSums<L>(waiting, num_waiting, job.overwrite, dvalues);
}

// A convolution works on cells instead of rows of the batch: see `Raster`. `pixels` says which
// pixel a cell is; if it is negative, or not below `limit`, the cell is none.

// to[c][cell] = from[pixel of the cell][c]; zero if the cell is no pixel.
struct PackJob {
  const float* from;  // [pixels, columns]
  int64_t columns;
  const int64_t* pixels;
  int64_t limit;
  int64_t cells;       // A multiple of kStep.
  const float* zeros;  // `columns` of them.
  float* to;
  int64_t to_stride;
};

template <int L>
RIGL_INLINE void Pack(const PackJob& job) {
  for (int64_t cell = 0; cell < job.cells; cell += L) {
    const float* from[L];
    for (int i = 0; i < L; ++i) {
      const int64_t pixel = job.pixels[cell + i];
      from[i] = pixel >= 0 && pixel < job.limit ? job.from + pixel * job.columns : job.zeros;
    }
    for (int64_t c = 0; c < job.columns; c += L) {
      const int64_t columns = std::min<int64_t>(L, job.columns - c);
      Vector<L> square[L];
      float* to = job.to + c * job.to_stride + cell;
      if (columns == L) {
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) square[i] = Load<L>(from[i] + c);
        TransposeSquare<L>(square);
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) Store<L>(square[i], to + i * job.to_stride);
      } else {
        for (int i = 0; i < L; ++i) square[i] = LoadFirst<L>(from[i] + c, columns);
        TransposeSquare<L>(square);
        for (int i = 0; i < columns; ++i) Store<L>(square[i], to + i * job.to_stride);
      }
    }
  }
}

// to[pixel of the cell][c] = from[c][cell] for cells that are pixels.
struct UnpackJob {
  const float* from;
  int64_t from_stride;
  int64_t columns;
  const int64_t* pixels;
  int64_t limit;
  int64_t cells;  // A multiple of kStep.
  float* to;
  int64_t to_stride;
};

template <int L>
RIGL_INLINE void Unpack(const UnpackJob& job) {
  for (int64_t c = 0; c < job.columns; c += L) {
    const int64_t columns = std::min<int64_t>(L, job.columns - c);
    for (int64_t cell = 0; cell < job.cells; cell += L) {
      Vector<L> square[L];
      const float* from = job.from + c * job.from_stride + cell;
      if (columns == L) {
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) square[i] = Load<L>(from + i * job.from_stride);
      } else {
        for (int i = 0; i < L; ++i) {
          square[i] = i < columns ? Load<L>(from + i * job.from_stride) : Vector<L>{};
        }
      }
      TransposeSquare<L>(square);
      for (int i = 0; i < L; ++i) {
        const int64_t pixel = job.pixels[cell + i];
        if (pixel < 0 || pixel >= job.limit) continue;
        StoreFirst<L>(square[i], job.to + pixel * job.to_stride + c, columns);
      }
    }
  }
}

// As `ForwardJob`, for one tile of output cells.
struct ConvJob {
  const int64_t* splits;
  const int32_t* offsets;  // In the order of the outputs: what a value multiplies, from `x` on.
  const float* values;     // In the order of the outputs.
  const float* x;
  float* y;  // [pixels, outputs]
  const int64_t* pixels;
  int64_t limit;
  int64_t outputs;
  int64_t first;
  int64_t last;
  int width;
};

template <int L, int N>
RIGL_INLINE void ConvOf(const ConvJob& job) {
  constexpr int kWidth = L * N;
  alignas(64) float sums[kLine * kWidth];
  const int32_t* const offsets = job.offsets;
  const float* const values = job.values;
  const float* const x_tile = job.x;
  for (int64_t start = job.first; start < job.last; start += kLine) {
    const int64_t count = std::min<int64_t>(kLine, job.last - start);
    for (int64_t k = 0; k < count; ++k) {
      Vector<L> sum[N] = {};
      const int64_t end = job.splits[start + k + 1];
      for (int64_t j = job.splits[start + k]; j < end; ++j) {
        const float* x = x_tile + offsets[j];
        const float value = values[j];
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) sum[i] += value * Load<L>(x + i * L);
      }
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) Store<L>(sum[i], sums + k * kWidth + i * L);
    }
    Unpack<L>({sums, kWidth, count, job.pixels, job.limit, kWidth, job.y + start, job.outputs});
  }
}

// As `BackwardJob`, for one tile of output cells and the inputs from `first` to `last`, channels
// that one place of the kernel sees. What it adds to `dx` is in the layout of `x`.
struct ConvBackwardJob {
  const int64_t* splits;
  const int32_t* columns;
  const float* values;
  const float* x;  // [inputs, stride], from the first of the inputs on.
  float* dx;
  int64_t stride;
  const float* dy;  // [outputs, width]
  float* dvalues;
  int64_t first;
  int64_t last;
  int width;
  bool overwrite;
};

template <int L, int N, bool kInput>
RIGL_INLINE void ConvBackwardOf(const ConvBackwardJob& job) {
  constexpr int kWidth = L * N;
  Vector<L> waiting[L] = {};
  int num_waiting = 0;
  float* dvalues = job.dvalues + job.splits[job.first];
  const int32_t* const columns = job.columns;
  const float* const values = job.values;
  const float* const dy_tile = job.dy;
  const bool overwrite = job.overwrite;
  const int64_t last = job.splits[job.last] - 1;
  for (int64_t row = job.first; row < job.last; ++row) {
    const int64_t end = job.splits[row + 1];
    if (job.splits[row] == end) continue;
    const float* from_x = job.x + (row - job.first) * job.stride;
    Vector<L> x[N];
    Vector<L> sum[N] = {};
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) x[i] = Load<L>(from_x + i * L);
    for (int64_t j = job.splits[row]; j < end; ++j) {
      const float* later =
          dy_tile + static_cast<int64_t>(columns[std::min(j + kAhead, last)]) * kWidth;
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; i += kLine) __builtin_prefetch(later + i);
      const float* from = dy_tile + static_cast<int64_t>(columns[j]) * kWidth;
      const float value = values[j];
      Vector<L> product;
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) {
        const Vector<L> dy = Load<L>(from + i * L);
        if constexpr (kInput) sum[i] += value * dy;
        product = i == 0 ? x[i] * dy : product + x[i] * dy;
      }
      waiting[num_waiting++] = product;
      if (num_waiting == L) {
        StoreSums<L>(waiting, L, overwrite, dvalues);
        dvalues += L;
        num_waiting = 0;
      }
    }
    if constexpr (kInput) {
      float* dx = job.dx + (row - job.first) * job.stride;
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) Store<L>(Load<L>(dx + i * L) + sum[i], dx + i * L);
    }
  }
  if (num_waiting > 0) StoreSums<L>(waiting, num_waiting, job.overwrite, dvalues);
}

// gradient = x^T @ dy, dense, for some inputs and outputs: [inputs, stride].
struct DenseJob {
  const float* x;  // [batch, x_stride], at the first of the inputs.
  int64_t x_stride;
  const float* dy;  // [batch, dy_stride], at the first of the outputs.
  int64_t dy_stride;
  int64_t batch;
  int64_t inputs;
  int64_t outputs;
  float* gradient;
  int64_t stride;
  float* packed;  // kDensePacked floats of scratch.
};

constexpr int kDenseInputs = 48;  // A multiple of every version's R.
constexpr int kDenseOutputs = 2048;
constexpr int kDenseBatch = 128;
constexpr int kDensePanel = 32;  // A multiple of every version's outputs at a time.
constexpr int kDensePacked = kDenseBatch * (kDenseInputs + kDensePanel);

// R inputs at a time, S vectors of outputs.
template <int L, int R, int S>
RIGL_INLINE void DensePanel(const float* x, const float* dy, int64_t batch, bool overwrite,
                            float* gradient, int64_t stride) {
  Vector<L> sums[R][S] = {};
  for (int64_t p = 0; p < batch; ++p) {
    Vector<L> b[S];
#pragma GCC unroll 16
    for (int s = 0; s < S; ++s) b[s] = Load<L>(dy + p * S * L + s * L);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const float a = x[p * R + r];
#pragma GCC unroll 16
      for (int s = 0; s < S; ++s) sums[r][s] += a * b[s];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int s = 0; s < S; ++s) {
      float* to = gradient + r * stride + s * L;
      Store<L>(overwrite ? sums[r][s] : Load<L>(to) + sums[r][s], to);
    }
  }
}

template <int L, int R, int S>
RIGL_INLINE void Dense(const DenseJob& job) {
  constexpr int kPanel = S * L;
  static_assert(kDenseInputs % R == 0 && kDensePanel % kPanel == 0, "panels must fit");
  float* packed_x = job.packed;
  float* packed_dy = job.packed + kDenseBatch * kDenseInputs;
  const int64_t padded_inputs = (job.inputs + R - 1) / R * R;
  // Once for an empty batch too: its gradient is zero.
  for (int64_t start = 0; start == 0 || start < job.batch; start += kDenseBatch) {
    const int64_t batch = std::min<int64_t>(kDenseBatch, job.batch - start);
    for (int64_t c = 0; c < padded_inputs; c += R) {
      for (int64_t p = 0; p < batch; ++p) {
        const float* from = job.x + (start + p) * job.x_stride + c;
        for (int64_t r = 0; r < R; ++r) {
          packed_x[c * kDenseBatch + p * R + r] = c + r < job.inputs ? from[r] : 0.0f;
        }
      }
    }
    for (int64_t o = 0; o < job.outputs; o += kPanel) {
      for (int64_t p = 0; p < batch; ++p) {
        const float* from = job.dy + (start + p) * job.dy_stride + o;
#pragma GCC unroll 16
        for (int s = 0; s < S; ++s) {
          const Vector<L> dy = o + s * L < job.outputs
                                   ? LoadFirst<L>(from + s * L, job.outputs - o - s * L)
                                   : Vector<L>{};
          Store<L>(dy, packed_dy + p * kPanel + s * L);
        }
      }
      for (int64_t c = 0; c < padded_inputs; c += R) {
        DensePanel<L, R, S>(packed_x + c * kDenseBatch, packed_dy, batch, start == 0,
                            job.gradient + c * job.stride + o, job.stride);
      }
    }
  }
}

// The bits of |gradient|, which order as the numbers do, NaN above all. Returns whether all are
// finite.
RIGL_INLINE bool Magnitudes(const float* gradient, int64_t count, int32_t* magnitudes) {
  int32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    int32_t bits;
    std::memcpy(&bits, gradient + i, sizeof(bits));
    bits &= 0x7fffffff;
    magnitudes[i] = bits;
    largest = std::max(largest, bits);
  }
  return largest < 0x7f800000;
}

// How many of 64 magnitudes reach a threshold.
RIGL_INLINE int32_t Reaching(const int32_t* magnitudes, int32_t threshold) {
  int32_t count = 0;
  for (int i = 0; i < 64; ++i) count += magnitudes[i] >= threshold ? 1 : 0;
  return count;
}

// Whether all are in [0, limit).
RIGL_INLINE bool Below(const int32_t* indices, int64_t count, int64_t limit) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, static_cast<uint32_t>(indices[i]));
  }
  return count == 0 || static_cast<int64_t>(largest) < limit;
}

// ---------------------------------------------------------------------------------------------
// Versions of all this for kinds of processors, from one source.

struct Version {
  int lanes;
  int tile;  // The widest tile whose sums fit in the registers.
  void (*transpose)(const TransposeJob&);
  void (*sum_rows)(const TransposeJob&);
  void (*forward)(const ForwardJob&);
  void (*backward)(const BackwardJob&);
  void (*pack)(const PackJob&);
  void (*unpack)(const UnpackJob&);
  void (*conv)(const ConvJob&);
  void (*conv_backward)(const ConvBackwardJob&);
  void (*dense)(const DenseJob&);
  bool (*magnitudes)(const float*, int64_t, int32_t*);
  int32_t (*reaching)(const int32_t*, int32_t);
  bool (*below)(const int32_t*, int64_t, int64_t);
};

template <int L>
RIGL_INLINE void ForwardOfAnyWidth(const ForwardJob& job) {
  constexpr int kVectors = kStep / L;
  if (job.width == kStep) return ForwardOf<L, kVectors>(job);
  if (job.width == 2 * kStep) return ForwardOf<L, 2 * kVectors>(job);
  if constexpr (L == 16) {
    if (job.width == 3 * kStep) return ForwardOf<L, 3 * kVectors>(job);
    return ForwardOf<L, 4 * kVectors>(job);
  }
}

template <int L, bool kInput>
RIGL_INLINE void BackwardOfAnyWidth(const BackwardJob& job) {
  constexpr int kVectors = kStep / L;
  if (job.width == kStep) return BackwardOf<L, kVectors, kInput>(job);
  if (job.width == 2 * kStep) return BackwardOf<L, 2 * kVectors, kInput>(job);
  if constexpr (L == 16) {
    if (job.width == 3 * kStep) return BackwardOf<L, 3 * kVectors, kInput>(job);
    return BackwardOf<L, 4 * kVectors, kInput>(job);
  }
}

template <int L>
RIGL_INLINE void ConvOfAnyWidth(const ConvJob& job) {
  constexpr int kVectors = kStep / L;
  if (job.width == kStep) return ConvOf<L, kVectors>(job);
  if (job.width == 2 * kStep) return ConvOf<L, 2 * kVectors>(job);
  if constexpr (L == 16) {
    if (job.width == 3 * kStep) return ConvOf<L, 3 * kVectors>(job);
    return ConvOf<L, 4 * kVectors>(job);
  }
}

template <int L, bool kInput>
RIGL_INLINE void ConvBackwardOfAnyWidth(const ConvBackwardJob& job) {
  constexpr int kVectors = kStep / L;
  if (job.width == kStep) return ConvBackwardOf<L, kVectors, kInput>(job);
  if (job.width == 2 * kStep) return ConvBackwardOf<L, 2 * kVectors, kInput>(job);
  if constexpr (L == 16) {
    if (job.width == 3 * kStep) return ConvBackwardOf<L, 3 * kVectors, kInput>(job);
    return ConvBackwardOf<L, 4 * kVectors, kInput>(job);
  }
}

// TARGET says which instructions a function may use, and with it all that is inlined there.
#define RIGL_VERSION(NAME, L, TILE, R, S, TARGET)                                                 \
  TARGET void Transpose##NAME(const TransposeJob& job) { Transpose<L>(job); }                     \
  TARGET void SumRows##NAME(const TransposeJob& job) { SumRows<L>(job); }                         \
  TARGET void Forward##NAME(const ForwardJob& job) { ForwardOfAnyWidth<L>(job); }                 \
  TARGET void InputBackward##NAME(const BackwardJob& job) { BackwardOfAnyWidth<L, true>(job); }   \
  TARGET void ValuesBackward##NAME(const BackwardJob& job) { BackwardOfAnyWidth<L, false>(job); } \
  void Backward##NAME(const BackwardJob& job) {                                                   \
    return job.dx != nullptr ? InputBackward##NAME(job) : ValuesBackward##NAME(job);              \
  }                                                                                               \
  TARGET void Pack##NAME(const PackJob& job) { Pack<L>(job); }                                    \
  TARGET void Unpack##NAME(const UnpackJob& job) { Unpack<L>(job); }                              \
  TARGET void Conv##NAME(const ConvJob& job) { ConvOfAnyWidth<L>(job); }                          \
  TARGET void InputConvBackward##NAME(const ConvBackwardJob& job) {                               \
    ConvBackwardOfAnyWidth<L, true>(job);                                                         \
  }                                                                                               \
  TARGET void ValuesConvBackward##NAME(const ConvBackwardJob& job) {                              \
    ConvBackwardOfAnyWidth<L, false>(job);                                                        \
  }                                                                                               \
  void ConvBackward##NAME(const ConvBackwardJob& job) {                                           \
    return job.dx != nullptr ? InputConvBackward##NAME(job) : ValuesConvBackward##NAME(job);      \
  }                                                                                               \
  TARGET void Dense##NAME(const DenseJob& job) { Dense<L, R, S>(job); }                           \
  TARGET bool Magnitudes##NAME(const float* from, int64_t count, int32_t* to) {                   \
    return Magnitudes(from, count, to);                                                           \
  }                                                                                               \
  TARGET int32_t Reaching##NAME(const int32_t* from, int32_t threshold) {                         \
    return Reaching(from, threshold);                                                             \
  }                                                                                               \
  TARGET bool Below##NAME(const int32_t* indices, int64_t count, int64_t limit) {                 \
    return Below(indices, count, limit);                                                          \
  }                                                                                               \
  constexpr Version k##NAME = {L,                                                                 \
                               TILE,                                                              \
                               Transpose##NAME,                                                   \
                               SumRows##NAME,                                                     \
                               Forward##NAME,                                                     \
                               Backward##NAME,                                                    \
                               Pack##NAME,                                                        \
                               Unpack##NAME,                                                      \
                               Conv##NAME,                                                        \
                               ConvBackward##NAME,                                                \
                               Dense##NAME,                                                       \
                               Magnitudes##NAME,                                                  \
                               Reaching##NAME,                                                    \
                               Below##NAME};

RIGL_VERSION(Plain, 4, 32, 4, 2, )

#if defined(__x86_64__)
RIGL_VERSION(Avx2, 8, 32, 6, 2, __attribute__((target("avx2,fma"))))
RIGL_VERSION(Avx512, 16, 64, 12, 2, __attribute__((target("avx512f"))))
#endif

const Version& ThisVersion() {
#if defined(__x86_64__)
  static const int lanes = __builtin_cpu_supports("avx512f")                                 ? 16
                           : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 8
                                                                                             : 4;
  const int allowed = std::min<int>(lanes, max_lanes);
  if (allowed >= 16) return kAvx512;
  if (allowed >= 8) return kAvx2;
#endif
  return kPlain;
}

// ---------------------------------------------------------------------------------------------
// Threads and memory.

// Calls work(0) ... work(count - 1), each once, on this thread and others of the device. The calls
// begin in this order, so one may wait for an earlier one.
class Workers {
 public:
  explicit Workers(OpKernelContext* context)
      : workers_(*context->device()->tensorflow_cpu_worker_threads()),
        threads_(std::min<int64_t>(workers_.num_threads, max_threads)) {}

  int64_t threads() const { return threads_; }

  // `operations` is about how many multiplications it all takes: little work stays here.
  void ForEach(int64_t count, int64_t operations, const std::function<void(int64_t)>& work) const {
    // Threads differ in what they do with denormal numbers; results must not.
    tsl::port::ScopedFlushDenormal flush;
    int64_t threads = std::min(threads_, count);
    threads = std::min(threads, 1 + operations / kOperationsPerThread);
    if (threads <= 1) {
      for (int64_t i = 0; i < count; ++i) work(i);
      return;
    }
    auto progress = std::make_shared<Progress>(count);
    // A thread that comes too late finds nothing left to do, and does not touch `work`.
    auto run = [progress, count, &work] {
      tsl::port::ScopedFlushDenormal flush;
      int64_t num_done = 0;
      for (;;) {
        const int64_t i = progress->next.fetch_add(1, std::memory_order_relaxed);
        if (i >= count) break;
        work(i);
        ++num_done;
      }
      if (num_done > 0) progress->Finish(num_done);
    };
    for (int64_t i = 1; i < threads; ++i) workers_.workers->Schedule(run);
    run();
    progress->Wait();
  }

 private:
  static constexpr int64_t kOperationsPerThread = 100000;

  struct Progress {
    explicit Progress(int64_t count) : left(count) {}

    void Finish(int64_t count) {
      if (left.fetch_sub(count, std::memory_order_acq_rel) == count) {
        std::lock_guard<std::mutex> lock(mutex);
        finished.notify_all();
      }
    }

    void Wait() {
      for (int i = 0; i < 1000; ++i) {
        if (left.load(std::memory_order_acquire) == 0) return;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
      std::unique_lock<std::mutex> lock(mutex);
      finished.wait(lock, [this] { return left.load(std::memory_order_acquire) == 0; });
    }

    std::atomic<int64_t> next{0};
    std::atomic<int64_t> left;
    std::mutex mutex;
    std::condition_variable finished;
  };

  const tensorflow::DeviceBase::CpuWorkerThreads& workers_;
  const int64_t threads_;
};

// Memory for a while. It is kept for the next user: fresh memory would cost a page fault per 4 KiB,
// and used memory is still in the cache.
class Scratch {
 public:
  explicit Scratch(int64_t floats) {
    const size_t bytes = std::max<int64_t>(floats, 1) * sizeof(float);
    {
      Pool& pool = ThePool();
      std::lock_guard<std::mutex> lock(pool.mutex);
      auto best = pool.free.end();
      for (auto it = pool.free.begin(); it != pool.free.end(); ++it) {
        if (it->bytes < bytes) continue;
        if (best == pool.free.end() || it->bytes <= best->bytes) best = it;
      }
      if (best != pool.free.end()) {
        buffer_ = *best;
        pool.free.erase(best);
      } else if (!pool.free.empty()) {
        // One that is too small makes room for a larger one.
        tsl::port::AlignedFree(pool.free.back().memory);
        pool.free.pop_back();
      }
    }
    if (buffer_.memory == nullptr) {
      buffer_ = {tsl::port::AlignedMalloc(bytes, static_cast<std::align_val_t>(64)), bytes};
    }
  }

  ~Scratch() {
    if (buffer_.memory == nullptr) return;
    Pool& pool = ThePool();
    {
      std::lock_guard<std::mutex> lock(pool.mutex);
      if (pool.free.size() < kMostBuffers && buffer_.bytes <= kMostBytes) {
        pool.free.push_back(buffer_);
        return;
      }
    }
    tsl::port::AlignedFree(buffer_.memory);
  }

  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Null if there is no memory.
  float* data() const { return static_cast<float*>(buffer_.memory); }

 private:
  static constexpr size_t kMostBuffers = 64;
  static constexpr size_t kMostBytes = size_t{1} << 28;

  struct Buffer {
    void* memory = nullptr;
    size_t bytes = 0;
  };

  struct Pool {
    std::mutex mutex;
    std::vector<Buffer> free;
  };

  // Never destroyed: threads may still run when the program ends.
  static Pool& ThePool() {
    static Pool* pool = new Pool;
    return *pool;
  }

  Buffer buffer_;
};

// ---------------------------------------------------------------------------------------------
// What the operations share.

// Whether these are the borders of rows that hold n entries.
bool AreSplits(const int64_t* splits, int64_t rows, int64_t n) {
  bool ascending = splits[0] == 0 && splits[rows] == n;
  for (int64_t i = 0; i < rows; ++i) ascending &= splits[i] <= splits[i + 1];
  return ascending;
}

// Borders of about `blocks` blocks of rows with equal work, at multiples of kLine where the blocks
// are large enough.
std::vector<int64_t> EqualBlocks(const int64_t* splits, int64_t rows, int64_t blocks) {
  const int64_t multiple = rows >= 4 * kLine * blocks ? kLine : 1;
  // Each row costs about as much as two entries by itself.
  const auto work_before = [splits](int64_t row) { return splits[row] + 2 * row; };
  std::vector<int64_t> borders = {0};
  for (int64_t b = 1; b < blocks; ++b) {
    const int64_t wanted = work_before(rows) / blocks * b;
    int64_t low = borders.back(), high = rows;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (work_before(middle) < wanted) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    const int64_t border = (low + multiple / 2) / multiple * multiple;
    if (border > borders.back() && border < rows) borders.push_back(border);
  }
  if (rows > 0) borders.push_back(rows);
  return borders;
}

// The batch in tiles: all but the last are `tile` wide.
struct Tiles {
  Tiles(int64_t batch, int tile) : batch(batch), tile(tile), count((batch + tile - 1) / tile) {}

  int64_t start(int64_t t) const { return t * tile; }
  int64_t rows(int64_t t) const { return std::min<int64_t>(tile, batch - t * tile); }
  int width(int64_t t) const { return (static_cast<int>(rows(t)) + kStep - 1) / kStep * kStep; }

  // How many are transposed at a time, if each row of the batch has `floats` numbers.
  int64_t AtATime(int64_t floats) const {
    return std::max<int64_t>(1,
                             std::min(count, kMostScratch / std::max<int64_t>(1, floats * tile)));
  }

  const int64_t batch;
  const int tile;
  const int64_t count;
};

// A unit of work that transposes columns [part / parts) of one tile, and sums them unless `sums` is
// null.
void TransposeTile(const Version& version, const Tiles& tiles, int64_t t, const float* from,
                   int64_t columns, int64_t part, int64_t parts, float* to, float* sums = nullptr) {
  const int64_t lines = (columns + kLine - 1) / kLine;
  const int64_t first = std::min(columns, lines * part / parts * kLine);
  const int64_t last = std::min(columns, lines * (part + 1) / parts * kLine);
  const int width = tiles.width(t);
  TransposeJob job = {from + tiles.start(t) * columns + first,
                      columns,
                      tiles.rows(t),
                      last - first,
                      to + first * width,
                      width,
                      width};
  version.transpose(job);
  if (sums != nullptr) {
    job.to = sums + first;
    version.sum_rows(job);
  }
}

int64_t CeilOf(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether a structure in the order of the outputs fits; the entries of `rows` and `order` are not
// looked at.
absl::Status CheckByOutputs(const Tensor& values, const Tensor& column_splits, const Tensor& rows,
                            const Tensor& order) {
  if (values.dims() != 1) {
    return InvalidArgument("`values` must have rank 1. Received: shape=",
                           values.shape().DebugString());
  }
  if (column_splits.dims() != 1 || column_splits.dim_size(0) < 1) {
    return InvalidArgument(
        "`column_splits` must be a vector of the number of outputs plus one. Received: shape=",
        column_splits.shape().DebugString());
  }
  if (rows.shape() != values.shape() || order.shape() != values.shape()) {
    return InvalidArgument("`rows` and `order` must have the shape of `values`, ",
                           values.shape().DebugString(),
                           ". Received: rows.shape=", rows.shape().DebugString(),
                           ", order.shape=", order.shape().DebugString());
  }
  const int64_t n = values.dim_size(0);
  if (!AreSplits(column_splits.flat<int64_t>().data(), column_splits.dim_size(0) - 1, n)) {
    return InvalidArgument("`column_splits` must ascend from 0 to the number of values, ", n, ".");
  }
  return absl::OkStatus();
}

// Whether a structure in the order of the inputs fits; the entries of `columns` are not looked at.
absl::Status CheckByInputs(const Tensor& values, const Tensor& row_splits, const Tensor& columns,
                           int64_t inputs) {
  if (values.dims() != 1 || columns.shape() != values.shape()) {
    return InvalidArgument(
        "`values` and `columns` must be vectors of one length. Received: values.shape=",
        values.shape().DebugString(), ", columns.shape=", columns.shape().DebugString());
  }
  if (row_splits.dims() != 1 || row_splits.dim_size(0) != inputs + 1) {
    return InvalidArgument("`row_splits` must be a vector of the number of inputs plus one, ",
                           inputs + 1, ". Received: shape=", row_splits.shape().DebugString());
  }
  const int64_t n = values.dim_size(0);
  if (!AreSplits(row_splits.flat<int64_t>().data(), inputs, n)) {
    return InvalidArgument("`row_splits` must ascend from 0 to the number of values, ", n, ".");
  }
  return absl::OkStatus();
}

// ---------------------------------------------------------------------------------------------
// Operations.

class MatmulOp : public OpKernel {
 public:
  explicit MatmulOp(OpKernelConstruction* context) : OpKernel(context) {}

  void Compute(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    const Tensor& values = context->input(1);
    const Tensor& column_splits = context->input(4);
    const Tensor& rows = context->input(5);
    const Tensor& order = context->input(6);
    const Tensor& bias = context->input(7);
    OP_REQUIRES(context, x.dims() == 2,
                InvalidArgument("`x` must have rank 2: [batch, inputs]. Received: shape=",
                                x.shape().DebugString()));
    OP_REQUIRES_OK(context, CheckByOutputs(values, column_splits, rows, order));
    const int64_t batch = x.dim_size(0), inputs = x.dim_size(1);
    const int64_t outputs = column_splits.dim_size(0) - 1, n = values.dim_size(0);
    const int64_t num_biases = bias.NumElements();
    OP_REQUIRES(context, bias.dims() == 1 && (num_biases == outputs || num_biases == 0),
                InvalidArgument("`bias` must be a vector of the number of outputs, ", outputs,
                                ", or empty. Received: shape=", bias.shape().DebugString()));
    const float* bias_data = num_biases == 0 ? nullptr : bias.flat<float>().data();
    Tensor* y = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({batch, outputs}), &y));
    const float* x_data = x.flat<float>().data();
    const float* values_data = values.flat<float>().data();
    const int64_t* splits_data = column_splits.flat<int64_t>().data();
    const int32_t* rows_data = rows.flat<int32_t>().data();
    const int32_t* order_data = order.flat<int32_t>().data();
    float* y_data = y->flat<float>().data();

    const Version& version = ThisVersion();
    const Workers workers(context);
    const Tiles tiles(batch, version.tile);
    const int64_t at_a_time = tiles.AtATime(inputs);
    const Scratch scratch(n + kLine + at_a_time * tiles.tile * inputs);
    OP_REQUIRES(context, scratch.data() != nullptr, NoMemory());
    float* ordered = scratch.data();
    float* transposed = ordered + CeilOf(n, kLine) * kLine;

    // The values in the order of the outputs.
    const int64_t reorder_units = std::min<int64_t>(2 * workers.threads(), CeilOf(n, 1024));
    std::atomic<bool> valid{true};
    const auto reorder = [&](int64_t unit) {
      const int64_t first = n / reorder_units * unit;
      const int64_t last = unit + 1 == reorder_units ? n : n / reorder_units * (unit + 1);
      if (!version.below(order_data + first, last - first, n) ||
          !version.below(rows_data + first, last - first, inputs)) {
        valid = false;
        return;
      }
      for (int64_t j = first; j < last; ++j) ordered[j] = values_data[order_data[j]];
    };

    for (int64_t start = 0; start == 0 || start < tiles.count; start += at_a_time) {
      const int64_t count = std::min(at_a_time, tiles.count - start);
      const int64_t parts =
          std::max<int64_t>(1, std::min(CeilOf(4 * workers.threads(), std::max<int64_t>(1, count)),
                                        CeilOf(inputs, 8 * kLine)));
      const int64_t first_units = start == 0 ? reorder_units : 0;
      workers.ForEach(
          first_units + count * parts, n + count * tiles.tile * inputs / 4, [&](int64_t unit) {
            if (unit < first_units) return reorder(unit);
            const int64_t t = (unit - first_units) / parts;
            TransposeTile(version, tiles, start + t, x_data, inputs, (unit - first_units) % parts,
                          parts, transposed + t * tiles.tile * inputs);
          });
      OP_REQUIRES(
          context, valid,
          InvalidArgument("`rows` must be in [0, ", inputs, ") and `order` in [0, ", n, ")."));
      if (count == 0) break;
      const std::vector<int64_t> borders =
          EqualBlocks(splits_data, outputs, CeilOf(4 * workers.threads(), count));
      const int64_t blocks = borders.size() - 1;
      workers.ForEach(count * blocks, (n + 2 * outputs) * count * tiles.tile, [&](int64_t unit) {
        const int64_t t = unit / blocks;
        ForwardJob job;
        job.splits = splits_data;
        job.rows = rows_data;
        job.values = ordered;
        job.x = transposed + t * tiles.tile * inputs;
        job.bias = bias_data;
        job.y = y_data + tiles.start(start + t) * outputs;
        job.outputs = outputs;
        job.batch = tiles.rows(start + t);
        job.first = borders[unit % blocks];
        job.last = borders[unit % blocks + 1];
        job.width = tiles.width(start + t);
        version.forward(job);
      });
    }
  }
};

class MatmulGradOp : public OpKernel {
 public:
  explicit MatmulGradOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("input_gradient", &input_gradient_));
    OP_REQUIRES_OK(context, context->GetAttr("bias_gradient", &bias_gradient_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    const Tensor& dy = context->input(1);
    const Tensor& values = context->input(2);
    const Tensor& row_splits = context->input(3);
    const Tensor& columns = context->input(4);
    OP_REQUIRES(context, x.dims() == 2 && dy.dims() == 2 && x.dim_size(0) == dy.dim_size(0),
                InvalidArgument("`x` and `dy` must be [batch, inputs] and [batch, outputs]. "
                                "Received: x.shape=",
                                x.shape().DebugString(), ", dy.shape=", dy.shape().DebugString()));
    const int64_t batch = x.dim_size(0), inputs = x.dim_size(1);
    const int64_t outputs = dy.dim_size(1), n = values.NumElements();
    OP_REQUIRES_OK(context, CheckByInputs(values, row_splits, columns, inputs));
    Tensor* dx = nullptr;
    Tensor* dvalues = nullptr;
    Tensor* dbias = nullptr;
    const TensorShape dx_shape = input_gradient_ ? x.shape() : TensorShape({0, 0});
    const int64_t num_biases = bias_gradient_ ? outputs : 0;
    OP_REQUIRES_OK(context, context->allocate_output(0, dx_shape, &dx));
    OP_REQUIRES_OK(context, context->allocate_output(1, values.shape(), &dvalues));
    OP_REQUIRES_OK(context, context->allocate_output(2, TensorShape({num_biases}), &dbias));
    const float* x_data = x.flat<float>().data();
    const float* dy_data = dy.flat<float>().data();
    const float* values_data = values.flat<float>().data();
    const int64_t* splits_data = row_splits.flat<int64_t>().data();
    const int32_t* columns_data = columns.flat<int32_t>().data();
    float* dx_data = input_gradient_ ? dx->flat<float>().data() : nullptr;
    float* dvalues_data = dvalues->flat<float>().data();
    float* dbias_data = dbias->flat<float>().data();
    std::fill_n(dbias_data, num_biases, 0.0f);
    if (batch == 0) {
      std::fill_n(dvalues_data, n, 0.0f);
      return;
    }

    const Version& version = ThisVersion();
    const Workers workers(context);
    const Tiles tiles(batch, version.tile);
    const int64_t at_a_time = tiles.AtATime(inputs + outputs);
    const Scratch scratch(at_a_time * (tiles.tile * (inputs + outputs) + num_biases));
    OP_REQUIRES(context, scratch.data() != nullptr, NoMemory());
    float* transposed_x = scratch.data();
    float* transposed_dy = transposed_x + at_a_time * tiles.tile * inputs;
    float* dbias_of_tiles = transposed_dy + at_a_time * tiles.tile * outputs;
    const std::vector<int64_t> borders =
        EqualBlocks(splits_data, inputs, workers.threads() > 1 ? 4 * workers.threads() : 1);
    const int64_t blocks = borders.size() - 1;
    std::atomic<bool> valid{true};
    // Small tiles are worked on several at a time.
    const int64_t tiles_per_unit =
        std::max<int64_t>(1, kOperationsPerUnit * blocks / ((n + 2 * inputs) * tiles.tile + 1));

    for (int64_t start = 0; start < tiles.count; start += at_a_time) {
      const int64_t count = std::min(at_a_time, tiles.count - start);
      const int64_t parts =
          std::max<int64_t>(1, std::min(CeilOf(4 * workers.threads(), count),
                                        CeilOf(std::max(inputs, outputs), 8 * kLine)));
      const int64_t check_units = start == 0 ? CeilOf(n, kChecksPerUnit) : 0;
      const int64_t num_floats = count * tiles.tile * (inputs + outputs);
      workers.ForEach(check_units + count * parts * 2, n / 16 + num_floats / 4, [&](int64_t unit) {
        if (unit < check_units) {
          const int64_t first = unit * kChecksPerUnit;
          const int64_t num_checks = std::min(kChecksPerUnit, n - first);
          if (!version.below(columns_data + first, num_checks, outputs)) valid = false;
          return;
        }
        unit -= check_units;
        const int64_t t = unit / parts / 2, part = unit / 2 % parts;
        if (unit % 2 == 0) {
          TransposeTile(version, tiles, start + t, x_data, inputs, part, parts,
                        transposed_x + t * tiles.tile * inputs);
        } else {
          TransposeTile(version, tiles, start + t, dy_data, outputs, part, parts,
                        transposed_dy + t * tiles.tile * outputs,
                        bias_gradient_ ? dbias_of_tiles + t * outputs : nullptr);
        }
      });
      OP_REQUIRES(context, valid, InvalidArgument("`columns` must be in [0, ", outputs, ")."));
      for (int64_t t = 0; t < count; ++t) {
        for (int64_t o = 0; o < num_biases; ++o) dbias_data[o] += dbias_of_tiles[t * outputs + o];
      }
      // One block of inputs after the other, then the next tiles: these stay in the cache. A block
      // adds to its sums in the order of the tiles.
      const int64_t steps = CeilOf(count, tiles_per_unit);
      std::vector<std::atomic<int64_t>> steps_done(blocks);
      for (auto& done : steps_done) done.store(0, std::memory_order_relaxed);
      workers.ForEach(steps * blocks, (n + 2 * inputs) * count * tiles.tile, [&](int64_t unit) {
        const int64_t step = unit / blocks, block = unit % blocks;
        while (steps_done[block].load(std::memory_order_acquire) != step) {
          std::this_thread::yield();
        }
        const int64_t end = std::min(count, (step + 1) * tiles_per_unit);
        for (int64_t t = step * tiles_per_unit; t < end; ++t) {
          BackwardJob job;
          job.splits = splits_data;
          job.columns = columns_data;
          job.values = values_data;
          job.x = transposed_x + t * tiles.tile * inputs;
          job.dy = transposed_dy + t * tiles.tile * outputs;
          job.dx = dx_data == nullptr ? nullptr : dx_data + tiles.start(start + t) * inputs;
          job.dvalues = dvalues_data;
          job.inputs = inputs;
          job.batch = tiles.rows(start + t);
          job.first = borders[block];
          job.last = borders[block + 1];
          job.width = tiles.width(start + t);
          job.overwrite = start + t == 0;
          version.backward(job);
        }
        steps_done[block].store(step + 1, std::memory_order_release);
      });
    }
  }

 private:
  static constexpr int64_t kOperationsPerUnit = 400000;
  static constexpr int64_t kChecksPerUnit = 1 << 16;

  bool input_gradient_;
  bool bias_gradient_;
};

// ---------------------------------------------------------------------------------------------
// Convolutions.

constexpr int kDims = 3;

// How a kernel moves over images. Dimensions that an image does not have are of size 1.
struct Movement {
  absl::Status Read(OpKernelConstruction* context) {
    std::vector<int64_t>* lists[] = {&kernel, &strides, &dilations};
    const char* names[] = {"kernel_size", "strides", "dilations"};
    for (int i = 0; i < 3; ++i) {
      TF_RETURN_IF_ERROR(context->GetAttr(names[i], lists[i]));
      const bool positive =
          std::all_of(lists[i]->begin(), lists[i]->end(), [](int64_t each) { return each >= 1; });
      if (lists[i]->size() != kDims || !positive) {
        return InvalidArgument("`", names[i], "` must be three integers >= 1.");
      }
    }
    return context->GetAttr("padding", &padding);
  }

  int64_t places() const { return kernel[0] * kernel[1] * kernel[2]; }

  std::vector<int64_t> kernel, strides, dilations;
  std::string padding;
};

int64_t FloorOf(int64_t a, int64_t b) { return a >= 0 ? a / b : -CeilOf(-a, b); }

// Where the pixels of images lie in rows of cells, so that each place of a kernel sees the pixel
// that is a constant number of cells away.
//
// An output cell is a place of the kernel among the pixels, in the order of the pixels of the
// output. Behind each line of them there are a few cells more, which are no pixels: enough for all
// zeros on its right, and these are the zeros on the left of the next line as well. It is the same
// for planes and for images. With strides an image is several planes, such as the odd and the even
// pixels, each in cells of its own.
//
// Some images, a strip, are worked on together. No sum goes from one strip to another.
struct Raster {
  static constexpr int64_t kMinCells = 256;

  Raster(const Movement& movement, const TensorShape& x, int tile) : batch(x.dim_size(0)) {
    channels = x.dim_size(kDims + 1);
    int64_t before[kDims], first_shift[kDims], last_shift[kDims], last_pixel[kDims];
    for (int d = 0; d < kDims; ++d) {
      const int64_t stride = movement.strides[d];
      const int64_t reach = (movement.kernel[d] - 1) * movement.dilations[d] + 1;
      const int64_t size = x.dim_size(d + 1);
      if (movement.padding == "VALID") {
        out[d] = std::max<int64_t>(0, CeilOf(size - reach + 1, stride));
        before[d] = 0;
      } else {
        out[d] = CeilOf(size, stride);
        before[d] = movement.padding == "CAUSAL"
                        ? reach - 1
                        : std::max<int64_t>(0, (out[d] - 1) * stride + reach - size) / 2;
      }
      first_shift[d] = FloorOf(-before[d], stride);
      last_shift[d] = FloorOf(reach - 1 - before[d], stride);
      last_pixel[d] = std::min(out[d] - 1 + last_shift[d], (size - 1) / stride);
      // So long that what is seen from one line never reaches into a pixel of another.
      lines[d] = std::max({out[d], out[d] + last_shift[d], last_pixel[d] - first_shift[d] + 1});
    }
    out_pixels = out[0] * out[1] * out[2];
    in_pixels = x.dim_size(1) * x.dim_size(2) * x.dim_size(3);
    if (batch * out_pixels == 0) return;
    const int64_t steps[kDims] = {lines[1] * lines[2], lines[2], 1};
    const int64_t image = lines[0] * steps[0];
    images = std::min(batch, CeilOf(kMinCells, image));
    strips = CeilOf(batch, images);
    int64_t low = 0, high = 0, last = (images - 1) * image;
    for (int d = 0; d < kDims; ++d) {
      low += first_shift[d] * steps[d];
      high += last_shift[d] * steps[d];
      last += (out[d] - 1) * steps[d];
    }
    tiles = CeilOf(last + 1, tile);
    cells = CeilOf(last + 1, kStep) * kStep;
    // An odd number of cache lines, so that channels do not compete for a few places in the cache.
    stride = CeilOf(cells + high - low, kStep) * kStep;
    if (stride / kStep % 2 == 0) stride += kStep;

    // Which parts of the image the places of the kernel see, and how far away.
    std::vector<std::vector<int64_t>> phases;
    for (int64_t p = 0; p < movement.places(); ++p) {
      const int64_t place[kDims] = {p / movement.kernel[2] / movement.kernel[1],
                                    p / movement.kernel[2] % movement.kernel[1],
                                    p % movement.kernel[2]};
      std::vector<int64_t> phase(kDims);
      int64_t shift = -low;
      for (int d = 0; d < kDims; ++d) {
        const int64_t away = place[d] * movement.dilations[d] - before[d];
        const int64_t whole = FloorOf(away, movement.strides[d]);
        phase[d] = away - whole * movement.strides[d];
        shift += whole * steps[d];
      }
      const auto known = std::find(phases.begin(), phases.end(), phase);
      offsets.push_back((known - phases.begin()) * channels * stride + shift);
      if (known == phases.end()) phases.push_back(phase);
    }
    planes = phases.size();
    seen.assign(planes * stride, -1);
    for (int64_t plane = 0; plane < planes; ++plane) {
      const std::vector<int64_t>& phase = phases[plane];
      int64_t ends[kDims];
      for (int d = 0; d < kDims; ++d) {
        ends[d] =
            std::min(last_pixel[d] + 1, CeilOf(x.dim_size(d + 1) - phase[d], movement.strides[d]));
      }
      for (int64_t n = 0; n < images; ++n) {
        for (int64_t a = 0; a < ends[0]; ++a) {
          for (int64_t b = 0; b < ends[1]; ++b) {
            const int64_t start = n * image + a * steps[0] + b * steps[1] - low;
            const int64_t line =
                (n * x.dim_size(1) + a * movement.strides[0] + phase[0]) * x.dim_size(2) +
                b * movement.strides[1] + phase[1];
            const int64_t end = std::min(ends[2], stride - start);
            for (int64_t c = 0; c < end; ++c) {
              seen[plane * stride + start + c] =
                  line * x.dim_size(3) + c * movement.strides[2] + phase[2];
            }
            num_seen += std::max<int64_t>(end, 0);
          }
        }
      }
    }
    made.assign(cells, -1);
    int64_t pixel = 0;
    for (int64_t n = 0; n < images; ++n) {
      for (int64_t a = 0; a < out[0]; ++a) {
        for (int64_t b = 0; b < out[1]; ++b) {
          int64_t* line = made.data() + n * image + a * steps[0] + b * steps[1];
          for (int64_t c = 0; c < out[2]; ++c) line[c] = pixel++;
        }
      }
    }
  }

  // The width of a tile: all but the last are `tile` wide.
  int width(int64_t t, int tile) const { return std::min<int64_t>(tile, cells - t * tile); }
  int64_t images_of(int64_t strip) const { return std::min(images, batch - strip * images); }
  int64_t floats() const { return planes * channels * stride; }

  int64_t batch, channels;
  int64_t out[kDims], lines[kDims];
  int64_t out_pixels, in_pixels;
  int64_t images = 0;  // In a strip.
  int64_t strips = 0;
  int64_t tiles = 0;   // In a strip.
  int64_t cells = 0;   // Of the output of a strip, a multiple of kStep.
  int64_t stride = 0;  // Cells of one channel of one plane.
  int64_t planes = 0;
  int64_t num_seen = 0;          // Cells that are pixels.
  std::vector<int64_t> offsets;  // For each place of the kernel: what the first cell sees.
  std::vector<int64_t> seen;     // [planes, stride], pixels of the strip.
  std::vector<int64_t> made;     // [cells], pixels of the output of the strip.
};

absl::Status CheckSize(const Raster& raster) {
  if (raster.floats() <= std::numeric_limits<int32_t>::max()) return absl::OkStatus();
  return InvalidArgument("An image must have less than 2**31 numbers with its padding.");
}

// A unit of work that packs part [part / parts) of the cells of one plane.
void PackPlane(const Version& version, const Raster& raster, int64_t strip, int64_t plane,
               int64_t part, int64_t parts, const float* x, const float* zeros, float* to) {
  const int64_t steps = raster.stride / kStep;
  const int64_t first = steps * part / parts * kStep;
  const int64_t last = steps * (part + 1) / parts * kStep;
  version.pack({x + strip * raster.images * raster.in_pixels * raster.channels, raster.channels,
                raster.seen.data() + plane * raster.stride + first,
                raster.images_of(strip) * raster.in_pixels, last - first, zeros,
                to + plane * raster.channels * raster.stride + first, raster.stride});
}

int64_t PartsOfPlane(const Raster& raster, const Workers& workers, int64_t count) {
  return std::max<int64_t>(1, std::min(CeilOf(4 * workers.threads(), count * raster.planes),
                                       raster.stride / (4 * kStep)));
}

class ConvOp : public OpKernel {
 public:
  explicit ConvOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, movement_.Read(context));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    const Tensor& values = context->input(1);
    const Tensor& column_splits = context->input(4);
    const Tensor& rows = context->input(5);
    const Tensor& order = context->input(6);
    OP_REQUIRES(context, x.dims() == kDims + 2,
                InvalidArgument("`x` must have rank 5: [batch, 3 dimensions, channels]. Received: "
                                "shape=",
                                x.shape().DebugString()));
    OP_REQUIRES_OK(context, CheckByOutputs(values, column_splits, rows, order));
    const Version& version = ThisVersion();
    const int tile = version.tile;
    const Raster raster(movement_, x.shape(), tile);
    OP_REQUIRES_OK(context, CheckSize(raster));
    const int64_t channels = raster.channels, inputs = movement_.places() * channels;
    const int64_t outputs = column_splits.dim_size(0) - 1, n = values.dim_size(0);
    Tensor* y = nullptr;
    OP_REQUIRES_OK(
        context,
        context->allocate_output(
            0, TensorShape({raster.batch, raster.out[0], raster.out[1], raster.out[2], outputs}),
            &y));
    const float* x_data = x.flat<float>().data();
    const float* values_data = values.flat<float>().data();
    const int64_t* splits_data = column_splits.flat<int64_t>().data();
    const int32_t* rows_data = rows.flat<int32_t>().data();
    const int32_t* order_data = order.flat<int32_t>().data();
    float* y_data = y->flat<float>().data();
    OP_REQUIRES(
        context, version.below(order_data, n, n) && version.below(rows_data, n, inputs),
        InvalidArgument("`rows` must be in [0, ", inputs, ") and `order` in [0, ", n, ")."));
    if (y->NumElements() == 0) return;

    const Workers workers(context);
    const int64_t floats = raster.floats();
    const int64_t at_a_time =
        std::max<int64_t>(1, std::min(raster.strips, kMostScratch / std::max<int64_t>(1, floats)));
    const int64_t padded_n = CeilOf(n + 1, kLine) * kLine;
    const Scratch scratch(2 * padded_n + CeilOf(channels + 1, kLine) * kLine + at_a_time * floats);
    OP_REQUIRES(context, scratch.data() != nullptr, NoMemory());
    float* ordered = scratch.data();
    int32_t* offsets = reinterpret_cast<int32_t*>(ordered + padded_n);
    float* zeros = ordered + 2 * padded_n;
    float* packed = zeros + CeilOf(channels + 1, kLine) * kLine;
    std::fill_n(zeros, channels, 0.0f);
    std::vector<int32_t> offset_of(inputs);
    for (int64_t r = 0; r < inputs; ++r) {
      offset_of[r] = raster.offsets[r / channels] + r % channels * raster.stride;
    }
    const int64_t reorder_units = std::min<int64_t>(2 * workers.threads(), CeilOf(n, 1024));

    for (int64_t start = 0; start < raster.strips; start += at_a_time) {
      const int64_t count = std::min(at_a_time, raster.strips - start);
      const int64_t parts = PartsOfPlane(raster, workers, count);
      const int64_t first_units = start == 0 ? reorder_units : 0;
      workers.ForEach(first_units + count * raster.planes * parts, n + count * floats / 4,
                      [&](int64_t unit) {
                        if (unit < first_units) {
                          const int64_t last = n * (unit + 1) / reorder_units;
                          for (int64_t j = n * unit / reorder_units; j < last; ++j) {
                            ordered[j] = values_data[order_data[j]];
                            offsets[j] = offset_of[rows_data[j]];
                          }
                          return;
                        }
                        unit -= first_units;
                        const int64_t strip = unit / parts / raster.planes;
                        PackPlane(version, raster, start + strip, unit / parts % raster.planes,
                                  unit % parts, parts, x_data, zeros, packed + strip * floats);
                      });
      const std::vector<int64_t> borders =
          EqualBlocks(splits_data, outputs, CeilOf(4 * workers.threads(), count * raster.tiles));
      const int64_t blocks = borders.size() - 1;
      workers.ForEach(
          count * raster.tiles * blocks, (n + 2 * outputs) * count * raster.cells,
          [&](int64_t unit) {
            const int64_t strip = unit / blocks / raster.tiles, t = unit / blocks % raster.tiles;
            ConvJob job;
            job.splits = splits_data;
            job.offsets = offsets;
            job.values = ordered;
            job.x = packed + strip * floats + t * tile;
            job.y = y_data + (start + strip) * raster.images * raster.out_pixels * outputs;
            job.pixels = raster.made.data() + t * tile;
            job.limit = raster.images_of(start + strip) * raster.out_pixels;
            job.outputs = outputs;
            job.first = borders[unit % blocks];
            job.last = borders[unit % blocks + 1];
            job.width = raster.width(t, tile);
            version.conv(job);
          });
    }
  }

 private:
  Movement movement_;
};

class ConvGradOp : public OpKernel {
 public:
  explicit ConvGradOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, movement_.Read(context));
    OP_REQUIRES_OK(context, context->GetAttr("input_gradient", &input_gradient_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    const Tensor& dy = context->input(1);
    const Tensor& values = context->input(2);
    const Tensor& row_splits = context->input(3);
    const Tensor& columns = context->input(4);
    OP_REQUIRES(context, x.dims() == kDims + 2 && dy.dims() == kDims + 2,
                InvalidArgument("`x` and `dy` must have rank 5: [batch, 3 dimensions, channels]. "
                                "Received: x.shape=",
                                x.shape().DebugString(), ", dy.shape=", dy.shape().DebugString()));
    const Version& version = ThisVersion();
    const int tile = version.tile;
    const Raster raster(movement_, x.shape(), tile);
    OP_REQUIRES_OK(context, CheckSize(raster));
    const int64_t channels = raster.channels, inputs = movement_.places() * channels;
    const int64_t outputs = dy.dim_size(kDims + 1), n = values.NumElements();
    OP_REQUIRES(context,
                dy.shape() == TensorShape({raster.batch, raster.out[0], raster.out[1],
                                           raster.out[2], outputs}),
                InvalidArgument("`dy` must have the shape of the output. Received: x.shape=",
                                x.shape().DebugString(), ", dy.shape=", dy.shape().DebugString()));
    OP_REQUIRES_OK(context, CheckByInputs(values, row_splits, columns, inputs));
    Tensor* dx = nullptr;
    Tensor* dvalues = nullptr;
    const TensorShape dx_shape = input_gradient_ ? x.shape() : TensorShape({0, 0, 0, 0, 0});
    OP_REQUIRES_OK(context, context->allocate_output(0, dx_shape, &dx));
    OP_REQUIRES_OK(context, context->allocate_output(1, values.shape(), &dvalues));
    const float* x_data = x.flat<float>().data();
    const float* dy_data = dy.flat<float>().data();
    const float* values_data = values.flat<float>().data();
    const int64_t* splits_data = row_splits.flat<int64_t>().data();
    const int32_t* columns_data = columns.flat<int32_t>().data();
    float* dx_data = input_gradient_ ? dx->flat<float>().data() : nullptr;
    float* dvalues_data = dvalues->flat<float>().data();
    OP_REQUIRES(context, version.below(columns_data, n, outputs),
                InvalidArgument("`columns` must be in [0, ", outputs, ")."));
    if (raster.strips == 0 || outputs == 0 || channels == 0) {
      std::fill_n(dvalues_data, n, 0.0f);
      std::fill_n(dx_data, input_gradient_ ? x.NumElements() : 0, 0.0f);
      return;
    }
    // With strides there may be pixels that no place of the kernel sees.
    if (input_gradient_ && raster.num_seen < raster.images * raster.in_pixels) {
      std::fill_n(dx_data, x.NumElements(), 0.0f);
    }

    const Workers workers(context);
    const int64_t floats = raster.floats(), dy_floats = raster.cells * outputs;
    const int64_t floats_of_strip = (input_gradient_ ? 2 : 1) * floats + dy_floats;
    const int64_t at_a_time =
        std::max<int64_t>(1, std::min(raster.strips, kMostScratch / floats_of_strip));
    const int64_t num_zeros = CeilOf(std::max(channels, outputs), kLine) * kLine;
    const Scratch scratch(num_zeros + at_a_time * floats_of_strip);
    OP_REQUIRES(context, scratch.data() != nullptr, NoMemory());
    float* zeros = scratch.data();
    float* packed_x = zeros + num_zeros;
    float* packed_dy = packed_x + at_a_time * floats;
    float* packed_dx = input_gradient_ ? packed_dy + at_a_time * dy_floats : nullptr;
    std::fill_n(zeros, num_zeros, 0.0f);

    // Blocks of channels with about equal work.
    std::vector<int64_t> work(channels + 1, 0);
    for (int64_t r = 0; r < inputs; ++r) {
      work[r % channels + 1] += splits_data[r + 1] - splits_data[r] + 2;
    }
    for (int64_t c = 0; c < channels; ++c) work[c + 1] += work[c];
    const std::vector<int64_t> borders =
        EqualBlocks(work.data(), channels, workers.threads() > 1 ? 4 * workers.threads() : 1);
    const int64_t blocks = borders.size() - 1;

    for (int64_t start = 0; start < raster.strips; start += at_a_time) {
      const int64_t count = std::min(at_a_time, raster.strips - start);
      const int64_t parts = PartsOfPlane(raster, workers, count);
      const int64_t x_units = count * raster.planes * parts;
      workers.ForEach(
          x_units + count * raster.tiles, count * (floats + dy_floats) / 4, [&](int64_t unit) {
            if (unit < x_units) {
              const int64_t strip = unit / parts / raster.planes;
              return PackPlane(version, raster, start + strip, unit / parts % raster.planes,
                               unit % parts, parts, x_data, zeros, packed_x + strip * floats);
            }
            unit -= x_units;
            const int64_t strip = unit / raster.tiles, t = unit % raster.tiles;
            const int width = raster.width(t, tile);
            version.pack({dy_data + (start + strip) * raster.images * raster.out_pixels * outputs,
                          outputs, raster.made.data() + t * tile,
                          raster.images_of(start + strip) * raster.out_pixels, width, zeros,
                          packed_dy + strip * dy_floats + t * tile * outputs, width});
          });
      // A block of channels has sums of its own. It adds to the gradient of the values in the order
      // of the strips, and to that of the input in the order of the tiles.
      std::vector<std::atomic<int64_t>> strips_done(blocks);
      for (auto& done : strips_done) done.store(0, std::memory_order_relaxed);
      workers.ForEach(count * blocks, (n + 2 * inputs) * count * raster.cells, [&](int64_t unit) {
        const int64_t strip = unit / blocks, block = unit % blocks;
        while (strips_done[block].load(std::memory_order_acquire) != strip) {
          std::this_thread::yield();
        }
        const int64_t first = borders[block], last = borders[block + 1];
        const float* x_strip = packed_x + strip * floats;
        float* dx_strip = packed_dx == nullptr ? nullptr : packed_dx + strip * floats;
        for (int64_t plane = 0; dx_strip != nullptr && plane < raster.planes; ++plane) {
          std::fill(dx_strip + (plane * channels + first) * raster.stride,
                    dx_strip + (plane * channels + last) * raster.stride, 0.0f);
        }
        for (int64_t t = 0; t < raster.tiles; ++t) {
          for (int64_t p = 0; p < movement_.places(); ++p) {
            const int64_t offset = raster.offsets[p] + first * raster.stride + t * tile;
            ConvBackwardJob job;
            job.splits = splits_data;
            job.columns = columns_data;
            job.values = values_data;
            job.x = x_strip + offset;
            job.dx = dx_strip == nullptr ? nullptr : dx_strip + offset;
            job.stride = raster.stride;
            job.dy = packed_dy + strip * dy_floats + t * tile * outputs;
            job.dvalues = dvalues_data;
            job.first = p * channels + first;
            job.last = p * channels + last;
            job.width = raster.width(t, tile);
            job.overwrite = start + strip + t == 0;
            version.conv_backward(job);
          }
        }
        strips_done[block].store(strip + 1, std::memory_order_release);
      });
      if (dx_data == nullptr) continue;
      workers.ForEach(x_units, count * floats / 4, [&](int64_t unit) {
        const int64_t strip = unit / parts / raster.planes, plane = unit / parts % raster.planes;
        const int64_t steps = raster.stride / kStep;
        const int64_t first = steps * (unit % parts) / parts * kStep;
        const int64_t last = steps * (unit % parts + 1) / parts * kStep;
        version.unpack({packed_dx + strip * floats + plane * channels * raster.stride + first,
                        raster.stride, channels, raster.seen.data() + plane * raster.stride + first,
                        raster.images_of(start + strip) * raster.in_pixels, last - first,
                        dx_data + (start + strip) * raster.images * raster.in_pixels * channels,
                        channels});
      });
    }
  }

 private:
  Movement movement_;
  bool input_gradient_;
};

class StructureOp : public OpKernel {
 public:
  explicit StructureOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("inputs", &inputs_));
    OP_REQUIRES_OK(context, context->GetAttr("outputs", &outputs_));
    constexpr int64_t most = std::numeric_limits<int32_t>::max();
    OP_REQUIRES(context, inputs_ <= most && outputs_ <= most,
                InvalidArgument("A kernel can have at most 2**31 - 1 inputs and as many outputs. "
                                "Received: ",
                                inputs_, " inputs, ", outputs_, " outputs."));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& places = context->input(0);
    OP_REQUIRES(context, places.dims() == 1,
                InvalidArgument("`places` must have rank 1. Received: shape=",
                                places.shape().DebugString()));
    const int64_t n = places.dim_size(0);
    OP_REQUIRES(context, n <= std::numeric_limits<int32_t>::max(),
                InvalidArgument("A kernel can have at most 2**31 - 1 active places. Received: ", n,
                                " places."));
    Tensor* outputs[5];
    const int64_t lengths[] = {inputs_ + 1, n, outputs_ + 1, n, n};
    for (int i = 0; i < 5; ++i) {
      OP_REQUIRES_OK(context, context->allocate_output(i, TensorShape({lengths[i]}), &outputs[i]));
    }
    const int64_t* from = places.flat<int64_t>().data();
    int64_t* row_splits = outputs[0]->flat<int64_t>().data();
    int32_t* columns = outputs[1]->flat<int32_t>().data();
    int64_t* column_splits = outputs[2]->flat<int64_t>().data();
    int32_t* rows = outputs[3]->flat<int32_t>().data();
    int32_t* order = outputs[4]->flat<int32_t>().data();

    std::fill_n(column_splits, outputs_ + 1, 0);
    int64_t row = 0, row_end = outputs_, last = -1;
    row_splits[0] = 0;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t place = from[i];
      OP_REQUIRES(context, place > last && place / outputs_ < inputs_,
                  InvalidArgument("`places` must ascend in [0, ", inputs_, " * ", outputs_,
                                  "). Received: ", place, " at position ", i, "."));
      last = place;
      while (place >= row_end) {
        row_splits[++row] = i;
        row_end += outputs_;
      }
      columns[i] = static_cast<int32_t>(place - (row_end - outputs_));
      ++column_splits[columns[i] + 1];
    }
    while (row < inputs_) row_splits[++row] = n;
    for (int64_t o = 0; o < outputs_; ++o) column_splits[o + 1] += column_splits[o];
    Tensor next_entries;
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_INT64, TensorShape({outputs_}),
                                                   &next_entries));
    int64_t* next = next_entries.flat<int64_t>().data();
    std::copy_n(column_splits, outputs_, next);
    for (int64_t c = 0; c < inputs_; ++c) {
      for (int64_t i = row_splits[c]; i < row_splits[c + 1]; ++i) {
        const int64_t j = next[columns[i]]++;
        rows[j] = static_cast<int32_t>(c);
        order[j] = static_cast<int32_t>(i);
      }
    }
  }

 private:
  int64_t inputs_;
  int64_t outputs_;
};

class PlacesOp : public OpKernel {
 public:
  explicit PlacesOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("outputs", &outputs_));
    OP_REQUIRES(context, outputs_ <= std::numeric_limits<int32_t>::max(),
                InvalidArgument("A kernel can have at most 2**31 - 1 outputs. Received: ", outputs_,
                                " outputs."));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& row_splits = context->input(0);
    const Tensor& columns = context->input(1);
    OP_REQUIRES(
        context, row_splits.dims() == 1 && row_splits.dim_size(0) >= 1 && columns.dims() == 1,
        InvalidArgument("`row_splits` and `columns` must be vectors, the first of one entry "
                        "at least. Received: shapes=",
                        row_splits.shape().DebugString(), " and ", columns.shape().DebugString()));
    const int64_t inputs = row_splits.dim_size(0) - 1, n = columns.dim_size(0);
    const int64_t* splits = row_splits.flat<int64_t>().data();
    OP_REQUIRES(context, AreSplits(splits, inputs, n),
                InvalidArgument("`row_splits` must ascend from 0 to the number of active places, ",
                                n, "."));
    Tensor* places = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, columns.shape(), &places));
    const int32_t* from = columns.flat<int32_t>().data();
    int64_t* to = places->flat<int64_t>().data();
    for (int64_t c = 0; c < inputs; ++c) {
      for (int64_t i = splits[c]; i < splits[c + 1]; ++i) to[i] = c * outputs_ + from[i];
    }
  }

 private:
  int64_t outputs_;
};

class ReplaceOp : public OpKernel {
 public:
  explicit ReplaceOp(OpKernelConstruction* context) : OpKernel(context) {}

  void Compute(OpKernelContext* context) override {
    const Tensor& places = context->input(0);
    const Tensor& is_kept = context->input(1);
    const Tensor& grown = context->input(2);
    OP_REQUIRES(
        context, places.dims() == 1 && grown.dims() == 1,
        InvalidArgument("`places` and `grown` must have rank 1. Received: shapes=",
                        places.shape().DebugString(), " and ", grown.shape().DebugString()));
    OP_REQUIRES(
        context, is_kept.shape() == places.shape(),
        InvalidArgument("`is_kept` must have the shape of `places`, ", places.shape().DebugString(),
                        ". Received: shape=", is_kept.shape().DebugString()));
    const int64_t n = places.dim_size(0);
    const int64_t num_grown = grown.dim_size(0);
    const int64_t* old = places.flat<int64_t>().data();
    const bool* kept = is_kept.flat<bool>().data();
    const int64_t* add = grown.flat<int64_t>().data();
    const TensorShape shape({std::count(kept, kept + n, true) + num_grown});
    Tensor* merged = nullptr;
    Tensor* before = nullptr;
    Tensor* was_there = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &merged));
    OP_REQUIRES_OK(context, context->allocate_output(1, shape, &before));
    OP_REQUIRES_OK(context, context->allocate_output(2, shape, &was_there));
    int64_t* to = merged->flat<int64_t>().data();
    int64_t* index = before->flat<int64_t>().data();
    bool* was = was_there->flat<bool>().data();

    int64_t j = 0, last = -1;
    // Whether the place ascends, as all that are written must.
    const auto write = [&](int64_t place, int64_t i) {
      if (place <= last) return false;
      last = *to++ = place;
      *index++ = i;
      *was++ = i < n && old[i] == place;
      return true;
    };
    bool ascends = true;
    for (int64_t i = 0; i < n && ascends; ++i) {
      // Places that grow may have been active before, if they are not kept.
      while (ascends && j < num_grown && add[j] <= old[i]) ascends = write(add[j++], i);
      if (ascends && kept[i]) ascends = write(old[i], i);
    }
    while (ascends && j < num_grown) ascends = write(add[j++], std::max<int64_t>(n - 1, 0));
    OP_REQUIRES(context, ascends,
                InvalidArgument("`places` and `grown` must ascend from 0 or more, and what is kept "
                                "cannot grow. Received: ",
                                last, " twice, or a smaller place after it."));
  }
};

// How many magnitudes have the same high bits.
class MagnitudeCounts {
 public:
  void Add(int32_t magnitude) { ++counts_[HighBits(magnitude)]; }

  static int32_t HighBits(int32_t magnitude) { return magnitude >> kLowBits; }
  static int32_t Least(int32_t high_bits) { return high_bits << kLowBits; }

  // The high bits of the magnitude of this rank, 1 for the largest. Sets it to the rank among those
  // with the same high bits.
  int32_t HighBitsOfLargest(int64_t* rank) const {
    int32_t high = static_cast<int32_t>(counts_.size()) - 1;
    while (high > 0 && counts_[high] < *rank) *rank -= counts_[high--];
    return high;
  }

 private:
  static constexpr int kLowBits = 15;  // Of 31.
  std::vector<int64_t> counts_ = std::vector<int64_t>(int64_t{1} << (31 - kLowBits), 0);
};

// The candidates with the largest magnitudes, found in memory for about twice as many.
class Largest {
 public:
  struct Candidate {
    int64_t place;
    int32_t magnitude;
    float gradient;
  };

  // Those that are added together lie in one of some equal, consecutive parts of all places. None
  // is below the first threshold.
  Largest(int64_t k, int64_t part_size, int64_t parts, int32_t threshold)
      : k_(k), most_(2 * k + kSpare), part_size_(part_size), parts_(parts), threshold_(threshold) {}

  // Candidates below it cannot be among the largest.
  int32_t threshold() const { return threshold_.load(std::memory_order_relaxed); }

  // They must ascend.
  void Add(const std::vector<Candidate>& candidates) {
    std::lock_guard<std::mutex> lock(mutex_);
    candidates_.insert(candidates_.end(), candidates.begin(), candidates.end());
    if (static_cast<int64_t>(candidates_.size()) > most_) KeepLargest();
  }

  // Sorted by place.
  std::vector<Candidate> Finish() {
    KeepLargest();
    // By parts first, as they came: most often this is all.
    std::vector<int64_t> next(parts_ + 1, 0);
    for (const Candidate& each : candidates_) ++next[each.place / part_size_ + 1];
    for (int64_t part = 0; part < parts_; ++part) next[part + 1] += next[part];
    std::vector<Candidate> sorted(candidates_.size());
    for (const Candidate& each : candidates_) sorted[next[each.place / part_size_]++] = each;
    const auto by_place = [](const Candidate& a, const Candidate& b) { return a.place < b.place; };
    auto first = sorted.begin();
    for (int64_t part = 0; part < parts_; ++part) {
      const auto last = sorted.begin() + next[part];
      if (!std::is_sorted(first, last, by_place)) std::sort(first, last, by_place);
      first = last;
    }
    return sorted;
  }

 private:
  static constexpr int64_t kSpare = 1 << 16;

  static bool Before(const Candidate& a, const Candidate& b) {
    return a.magnitude != b.magnitude ? a.magnitude > b.magnitude : a.place < b.place;
  }

  // The order is total, so which ones stay does not depend on who came first. They stay in the
  // order in which they came.
  void KeepLargest() {
    if (static_cast<int64_t>(candidates_.size()) <= k_) return;
    if (k_ == 0) return candidates_.clear();
    MagnitudeCounts counts;
    for (const Candidate& each : candidates_) counts.Add(each.magnitude);
    int64_t wanted = k_;
    const int32_t high = counts.HighBitsOfLargest(&wanted);
    // The last one that stays is among these.
    std::vector<Candidate> close;
    for (const Candidate& each : candidates_) {
      if (MagnitudeCounts::HighBits(each.magnitude) == high) close.push_back(each);
    }
    std::nth_element(close.begin(), close.begin() + (wanted - 1), close.end(), Before);
    const Candidate last = close[wanted - 1];
    candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(),
                                     [&](const Candidate& each) { return Before(last, each); }),
                      candidates_.end());
    threshold_.store(last.magnitude, std::memory_order_relaxed);
  }

  const int64_t k_;
  const int64_t most_;
  const int64_t part_size_;
  const int64_t parts_;
  std::atomic<int32_t> threshold_;
  std::mutex mutex_;
  std::vector<Candidate> candidates_;
};

class LargestGradientsOp : public OpKernel {
 public:
  explicit LargestGradientsOp(OpKernelConstruction* context) : OpKernel(context) {}

  void Compute(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    const Tensor& dy = context->input(1);
    const Tensor& row_splits = context->input(2);
    const Tensor& columns = context->input(3);
    const Tensor& of_active = context->input(4);
    const Tensor& is_eligible = context->input(5);
    const Tensor& k_tensor = context->input(6);
    OP_REQUIRES(context, x.dims() == 2 && dy.dims() == 2 && x.dim_size(0) == dy.dim_size(0),
                InvalidArgument("`x` and `dy` must be [batch, inputs] and [batch, outputs]. "
                                "Received: x.shape=",
                                x.shape().DebugString(), ", dy.shape=", dy.shape().DebugString()));
    const int64_t batch = x.dim_size(0), inputs = x.dim_size(1), outputs = dy.dim_size(1);
    OP_REQUIRES(context, columns.dims() == 1,
                InvalidArgument("`columns` must have rank 1. Received: shape=",
                                columns.shape().DebugString()));
    const int64_t n = columns.dim_size(0);
    OP_REQUIRES(
        context, row_splits.dims() == 1 && row_splits.dim_size(0) == inputs + 1,
        InvalidArgument("`row_splits` must be a vector of the number of inputs plus one, ",
                        inputs + 1, ". Received: shape=", row_splits.shape().DebugString()));
    OP_REQUIRES(context,
                of_active.shape() == columns.shape() && is_eligible.shape() == columns.shape(),
                InvalidArgument("`of_active` and `is_eligible` must have the shape of `columns`, ",
                                columns.shape().DebugString(),
                                ". Received: shapes=", of_active.shape().DebugString(), " and ",
                                is_eligible.shape().DebugString()));
    OP_REQUIRES(
        context, k_tensor.dims() == 0,
        InvalidArgument("`k` must be a scalar. Received: shape=", k_tensor.shape().DebugString()));
    const int64_t k = k_tensor.scalar<int64_t>()();
    const float* x_data = x.flat<float>().data();
    const float* dy_data = dy.flat<float>().data();
    const int64_t* splits_data = row_splits.flat<int64_t>().data();
    const int32_t* columns_data = columns.flat<int32_t>().data();
    OP_REQUIRES(context, AreSplits(splits_data, inputs, n),
                InvalidArgument("`row_splits` must ascend from 0 to the number of active places, ",
                                n, "."));
    const Version& version = ThisVersion();
    OP_REQUIRES(context, version.below(columns_data, n, outputs),
                InvalidArgument("`columns` must be in [0, ", outputs, ")."));
    const bool* eligible_data = is_eligible.flat<bool>().data();
    const int64_t num_candidates =
        inputs * outputs - n + std::count(eligible_data, eligible_data + n, true);
    OP_REQUIRES(context, 0 <= k && k <= num_candidates,
                InvalidArgument("`k` must be in [0, ", num_candidates,
                                "], the number of places to choose from. Received: k=", k));

    const Workers workers(context);
    const Gradient gradient = {version,      x_data,       dy_data,
                               batch,        inputs,       outputs,
                               splits_data,  columns_data, of_active.flat<float>().data(),
                               eligible_data};
    bool has_memory = true, is_finite = true;
    const int32_t threshold = ThresholdOfSample(workers, gradient, k, num_candidates, &has_memory);
    std::vector<Largest::Candidate> chosen;
    if (has_memory) chosen = Search(workers, gradient, k, threshold, &is_finite, &has_memory);
    if (has_memory && threshold > 0 && static_cast<int64_t>(chosen.size()) < k) {
      chosen = Search(workers, gradient, k, 0, &is_finite, &has_memory);  // Very rarely.
    }
    OP_REQUIRES(context, has_memory, NoMemory());
    OP_REQUIRES(context, static_cast<int64_t>(chosen.size()) == k,
                InvalidArgument("The active places must differ."));

    Tensor* places = nullptr;
    Tensor* gradients = nullptr;
    Tensor* finite = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({k}), &places));
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({k}), &gradients));
    OP_REQUIRES_OK(context, context->allocate_output(2, TensorShape({}), &finite));
    int64_t* places_data = places->flat<int64_t>().data();
    float* gradients_data = gradients->flat<float>().data();
    for (int64_t i = 0; i < k; ++i) {
      places_data[i] = chosen[i].place;
      gradients_data[i] = chosen[i].gradient;
    }
    finite->scalar<bool>()() = is_finite;
  }

 private:
  // The dense gradient, a block at a time: x^T @ dy, and what is given where connections are
  // active.
  struct Gradient {
    const Version& version;
    const float* x;
    const float* dy;
    int64_t batch;
    int64_t inputs;
    int64_t outputs;
    const int64_t* row_splits;
    const int32_t* columns;
    const float* of_active;
    const bool* is_eligible;

    int64_t panels() const { return CeilOf(outputs, kDenseOutputs); }
    int64_t blocks() const { return CeilOf(inputs, kDenseInputs) * panels(); }

    // Computes up to `most_inputs` rows of a block. For each, calls use(place of its first
    // candidate, gradients, magnitudes, how many there are): a multiple of 64, as there are a few
    // more than outputs. Magnitudes that are negative do not count.
    template <typename Use>
    void Visit(int64_t block, int64_t most_inputs, std::atomic<bool>* is_finite,
               std::atomic<bool>* has_memory, const Use& use) const {
      const int64_t c0 = block / panels() * kDenseInputs, o0 = block % panels() * kDenseOutputs;
      const int64_t num_inputs = std::min(most_inputs, inputs - c0);
      const int64_t num_outputs = std::min<int64_t>(kDenseOutputs, outputs - o0);
      const int64_t stride = CeilOf(num_outputs, 64) * 64;
      const Scratch scratch(kDensePacked + (kDenseInputs + 1) * stride);
      if (scratch.data() == nullptr) {
        *has_memory = false;
        return;
      }
      float* gradients = scratch.data() + kDensePacked;
      int32_t* magnitudes = reinterpret_cast<int32_t*>(gradients + kDenseInputs * stride);
      version.dense({x + c0, inputs, dy + o0, outputs, batch, num_inputs, num_outputs, gradients,
                     stride, scratch.data()});
      for (int64_t c = 0; c < num_inputs; ++c) {
        float* row = gradients + c * stride;
        for (int64_t i = row_splits[c0 + c]; i < row_splits[c0 + c + 1]; ++i) {
          const int64_t o = columns[i] - o0;  // Those of other panels are skipped.
          if (o >= 0 && o < num_outputs) row[o] = of_active[i];
        }
        if (!version.magnitudes(row, num_outputs, magnitudes)) *is_finite = false;
        std::fill(magnitudes + num_outputs, magnitudes + stride, -1);
        for (int64_t i = row_splits[c0 + c]; i < row_splits[c0 + c + 1]; ++i) {
          const int64_t o = columns[i] - o0;
          if (o >= 0 && o < num_outputs && !is_eligible[i]) magnitudes[o] = -1;
        }
        use((c0 + c) * outputs + o0, row, magnitudes, stride);
      }
    }
  };

  static constexpr int64_t kSampleBlocks = 16;
  static constexpr int64_t kSampleInputs = 12;  // Of each block.

  // A magnitude that somewhat more than `k` candidates probably reach, from a part of some blocks.
  static int32_t ThresholdOfSample(const Workers& workers, const Gradient& gradient, int64_t k,
                                   int64_t num_candidates, bool* has_memory) {
    if (k == 0) return std::numeric_limits<int32_t>::max();
    const int64_t blocks = gradient.blocks(), samples = std::min(kSampleBlocks, blocks / 2);
    if (samples < 4) return 0;
    std::vector<std::vector<int32_t>> found(samples);
    std::atomic<bool> is_finite{true}, has_all{true};
    workers.ForEach(
        samples, samples * kSampleInputs * kDenseOutputs * gradient.batch, [&](int64_t i) {
          gradient.Visit(i * blocks / samples, kSampleInputs, &is_finite, &has_all,
                         [&](int64_t, const float*, const int32_t* magnitudes, int64_t count) {
                           for (int64_t o = 0; o < count; ++o) {
                             if (magnitudes[o] >= 0) found[i].push_back(magnitudes[o]);
                           }
                         });
        });
    *has_memory = has_all;
    MagnitudeCounts counts;
    int64_t size = 0;
    for (const std::vector<int32_t>& each : found) {
      for (const int32_t magnitude : each) counts.Add(magnitude);
      size += static_cast<int64_t>(each.size());
    }
    const double share = static_cast<double>(k) / static_cast<double>(num_candidates);
    const double expected = share * static_cast<double>(size);
    int64_t rank = static_cast<int64_t>(1.5 * expected + 4 * std::sqrt(expected)) + 16;
    return rank >= size ? 0 : MagnitudeCounts::Least(counts.HighBitsOfLargest(&rank));
  }

  // The largest `k` of the candidates that reach a threshold; fewer if there are not so many.
  static std::vector<Largest::Candidate> Search(const Workers& workers, const Gradient& gradient,
                                                int64_t k, int32_t threshold, bool* is_finite,
                                                bool* has_memory) {
    Largest largest(k, kDenseInputs * gradient.outputs, CeilOf(gradient.inputs, kDenseInputs),
                    threshold);
    std::atomic<bool> all_finite{true}, has_all{true};
    workers.ForEach(
        gradient.blocks(), gradient.inputs * gradient.outputs * (gradient.batch + 1),
        [&](int64_t block) {
          std::vector<Largest::Candidate> found;
          gradient.Visit(
              block, kDenseInputs, &all_finite, &has_all,
              [&](int64_t place, const float* row, const int32_t* magnitudes, int64_t count) {
                const int32_t threshold = largest.threshold();
                for (int64_t o = 0; o < count; o += 64) {
                  if (gradient.version.reaching(magnitudes + o, threshold) == 0) continue;
                  // Without a branch for each, which would be foreseen wrongly all the time.
                  int64_t reaching[64], num_reaching = 0;
                  for (int64_t i = o; i < o + 64; ++i) {
                    reaching[num_reaching] = i;
                    num_reaching += magnitudes[i] >= threshold ? 1 : 0;
                  }
                  for (int64_t j = 0; j < num_reaching; ++j) {
                    const int64_t i = reaching[j];
                    found.push_back({place + i, magnitudes[i], row[i]});
                  }
                }
              });
          if (!found.empty()) largest.Add(found);
        });
    *is_finite = all_finite;
    *has_memory = has_all;
    return largest.Finish();
  }
};

absl::Status MatmulShape(InferenceContext* c) {
  ShapeHandle x, values, splits;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &x));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &values));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(4), 1, &splits));
  DimensionHandle outputs;
  TF_RETURN_IF_ERROR(c->Subtract(c->Dim(splits, 0), 1, &outputs));
  c->set_output(0, c->Matrix(c->Dim(x, 0), outputs));
  return absl::OkStatus();
}

absl::Status MatmulGradShape(InferenceContext* c) {
  ShapeHandle x, values;
  bool input_gradient;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &x));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 1, &values));
  TF_RETURN_IF_ERROR(c->GetAttr("input_gradient", &input_gradient));
  c->set_output(0, input_gradient ? x : c->Matrix(0, 0));
  c->set_output(1, values);
  bool bias_gradient;
  ShapeHandle dy;
  TF_RETURN_IF_ERROR(c->GetAttr("bias_gradient", &bias_gradient));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &dy));
  c->set_output(2, bias_gradient ? c->Vector(c->Dim(dy, 1)) : c->Vector(0));
  return absl::OkStatus();
}

absl::Status ConvShape(InferenceContext* c) {
  ShapeHandle x, values, splits;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), kDims + 2, &x));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &values));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(4), 1, &splits));
  DimensionHandle outputs;
  TF_RETURN_IF_ERROR(c->Subtract(c->Dim(splits, 0), 1, &outputs));
  c->set_output(
      0, c->MakeShape({c->Dim(x, 0), c->UnknownDim(), c->UnknownDim(), c->UnknownDim(), outputs}));
  return absl::OkStatus();
}

absl::Status ConvGradShape(InferenceContext* c) {
  ShapeHandle x, values;
  bool input_gradient;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), kDims + 2, &x));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 1, &values));
  TF_RETURN_IF_ERROR(c->GetAttr("input_gradient", &input_gradient));
  const DimensionHandle none = c->MakeDim(0);
  c->set_output(0, input_gradient ? x : c->MakeShape({none, none, none, none, none}));
  c->set_output(1, values);
  return absl::OkStatus();
}

absl::Status StructureShape(InferenceContext* c) {
  ShapeHandle places;
  int64_t inputs, outputs;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 1, &places));
  TF_RETURN_IF_ERROR(c->GetAttr("inputs", &inputs));
  TF_RETURN_IF_ERROR(c->GetAttr("outputs", &outputs));
  c->set_output(0, c->Vector(inputs + 1));
  c->set_output(1, places);
  c->set_output(2, c->Vector(outputs + 1));
  c->set_output(3, places);
  c->set_output(4, places);
  return absl::OkStatus();
}

absl::Status PlacesShape(InferenceContext* c) {
  ShapeHandle unused, columns;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 1, &unused));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &columns));
  c->set_output(0, columns);
  return absl::OkStatus();
}

absl::Status ReplaceShape(InferenceContext* c) {
  ShapeHandle places, unused;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 1, &places));
  TF_RETURN_IF_ERROR(c->Merge(places, c->input(1), &unused));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 1, &unused));
  for (int i = 0; i < 3; ++i) c->set_output(i, c->UnknownShapeOfRank(1));
  return absl::OkStatus();
}

absl::Status LargestGradientsShape(InferenceContext* c) {
  ShapeHandle unused, k;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &unused));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &unused));
  DimensionHandle size;
  TF_RETURN_IF_ERROR(c->MakeDimForScalarInput(6, &size));
  c->set_output(0, c->Vector(size));
  c->set_output(1, c->Vector(size));
  c->set_output(2, c->Scalar());
  return absl::OkStatus();
}

REGISTER_OP("RiglMatmul")
    .Input("x: float")
    .Input("values: float")
    .Input("row_splits: int64")
    .Input("columns: int32")
    .Input("column_splits: int64")
    .Input("rows: int32")
    .Input("order: int32")
    .Input("bias: float")
    .Output("y: float")
    .SetShapeFn(MatmulShape);

// The last three inputs of the gradients are not used here. The gradients of these gradients, which
// are products again, need them.
REGISTER_OP("RiglMatmulGrad")
    .Input("x: float")
    .Input("dy: float")
    .Input("values: float")
    .Input("row_splits: int64")
    .Input("columns: int32")
    .Input("column_splits: int64")
    .Input("rows: int32")
    .Input("order: int32")
    .Attr("input_gradient: bool = true")
    .Attr("bias_gradient: bool = false")
    .Output("dx: float")
    .Output("dvalues: float")
    .Output("dbias: float")
    .SetShapeFn(MatmulGradShape);

REGISTER_OP("RiglConv")
    .Input("x: float")
    .Input("values: float")
    .Input("row_splits: int64")
    .Input("columns: int32")
    .Input("column_splits: int64")
    .Input("rows: int32")
    .Input("order: int32")
    .Attr("kernel_size: list(int)")
    .Attr("strides: list(int)")
    .Attr("dilations: list(int)")
    .Attr("padding: {'VALID', 'SAME', 'CAUSAL'}")
    .Output("y: float")
    .SetShapeFn(ConvShape);

REGISTER_OP("RiglConvGrad")
    .Input("x: float")
    .Input("dy: float")
    .Input("values: float")
    .Input("row_splits: int64")
    .Input("columns: int32")
    .Input("column_splits: int64")
    .Input("rows: int32")
    .Input("order: int32")
    .Attr("kernel_size: list(int)")
    .Attr("strides: list(int)")
    .Attr("dilations: list(int)")
    .Attr("padding: {'VALID', 'SAME', 'CAUSAL'}")
    .Attr("input_gradient: bool = true")
    .Output("dx: float")
    .Output("dvalues: float")
    .SetShapeFn(ConvGradShape);

REGISTER_OP("RiglStructure")
    .Input("places: int64")
    .Attr("inputs: int >= 1")
    .Attr("outputs: int >= 1")
    .Output("row_splits: int64")
    .Output("columns: int32")
    .Output("column_splits: int64")
    .Output("rows: int32")
    .Output("order: int32")
    .SetShapeFn(StructureShape);

REGISTER_OP("RiglPlaces")
    .Input("row_splits: int64")
    .Input("columns: int32")
    .Attr("outputs: int >= 1")
    .Output("places: int64")
    .SetShapeFn(PlacesShape);

REGISTER_OP("RiglReplace")
    .Input("places: int64")
    .Input("is_kept: bool")
    .Input("grown: int64")
    .Output("merged: int64")
    .Output("before: int64")
    .Output("was_there: bool")
    .SetShapeFn(ReplaceShape);

REGISTER_OP("RiglLargestGradients")
    .Input("x: float")
    .Input("dy: float")
    .Input("row_splits: int64")
    .Input("columns: int32")
    .Input("of_active: float")
    .Input("is_eligible: bool")
    .Input("k: int64")
    .Output("places: int64")
    .Output("gradients: float")
    .Output("is_finite: bool")
    .SetShapeFn(LargestGradientsShape);

// XLA asks for these kernels when it compiles a function. Without them, its message would not say
// what to do.
class NotForXlaOp : public OpKernel {
 public:
  explicit NotForXlaOp(OpKernelConstruction* context) : OpKernel(context) {
    context->CtxFailure(absl::UnimplementedError(
        "XLA cannot compile CSR kernels: leave `jit_compile=True` away, or use "
        "`rigl_tf.with_execution(model, 'masked')` first."));
  }
  void Compute(OpKernelContext* context) override {}
};

#define RIGL_REGISTER(name, kernel)                                           \
  REGISTER_KERNEL_BUILDER(Name(name).Device(tensorflow::DEVICE_CPU), kernel); \
  REGISTER_KERNEL_BUILDER(Name(name).Device("XLA_CPU_JIT"), NotForXlaOp)

RIGL_REGISTER("RiglMatmul", MatmulOp);
RIGL_REGISTER("RiglMatmulGrad", MatmulGradOp);
RIGL_REGISTER("RiglConv", ConvOp);
RIGL_REGISTER("RiglConvGrad", ConvGradOp);
RIGL_REGISTER("RiglStructure", StructureOp);
RIGL_REGISTER("RiglPlaces", PlacesOp);
RIGL_REGISTER("RiglReplace", ReplaceOp);
RIGL_REGISTER("RiglLargestGradients", LargestGradientsOp);

#undef RIGL_REGISTER

}  // namespace
}  // namespace rigl

// For tests: limits the threads and the width of vectors in floats; 0 is no limit.
extern "C" void RiglSetLimits(int threads, int lanes) {
  rigl::max_threads = threads > 0 ? threads : std::numeric_limits<int>::max();
  rigl::max_lanes = lanes > 0 ? lanes : std::numeric_limits<int>::max();
}

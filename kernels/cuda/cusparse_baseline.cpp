#include "kernels/cuda/cusparse_baseline.h"

#include <cusparse.h>
#include <dlfcn.h>

#include <map>

#include "kernels/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_check.h"

namespace spinfer::cuda {
namespace {

/// The entry points used, from the library that is installed.
class Library {
 public:
  Library() : handle_(dlopen("libcusparse.so.12", RTLD_NOW | RTLD_LOCAL)) {
    check(handle_ != nullptr, "cuSPARSE: libcusparse.so.12 was not found ({})", dlerror());
  }
  ~Library() { dlclose(handle_); }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  template <class Function>
  Function* find(const char* name) const {
    void* symbol = dlsym(handle_, name);
    check(symbol != nullptr, "cuSPARSE: {} is missing from libcusparse.so.12", name);
    return reinterpret_cast<Function*>(symbol);
  }

 private:
  void* handle_;
};

}  // namespace

#define SPINFER_CUSPARSE(name) library.find<decltype(::name)>(#name)
#define SPINFER_CUSPARSE_CHECK(call)                                                                         \
  do {                                                                                                       \
    const cusparseStatus_t cusparse_status = (call);                                                         \
    check(cusparse_status == CUSPARSE_STATUS_SUCCESS, "{}: cuSPARSE error {}", #call, int(cusparse_status)); \
  } while (false)

struct CusparseWeight::State {
  State(Context& c, int64_t rows, int64_t columns) : context(c), m(rows), k(columns) {
    SPINFER_CUSPARSE_CHECK(SPINFER_CUSPARSE(cusparseCreate)(&handle));
    SPINFER_CUSPARSE_CHECK(SPINFER_CUSPARSE(cusparseSetStream)(handle, context.stream()));
    row_begin = context.allocate_shared(size_t(m + 1) * sizeof(int32_t));
  }
  ~State() {
    if (matrix) SPINFER_CUSPARSE(cusparseDestroySpMat)(matrix);
    if (handle) SPINFER_CUSPARSE(cusparseDestroy)(handle);
  }

  /// A row-major [rows][cols] array of ours is a column-major cols×rows matrix.
  cusparseDnMatDescr_t dense(const Half* data, int64_t rows, int64_t cols, cusparseOrder_t order) const {
    cusparseDnMatDescr_t description = nullptr;
    const int64_t stride = order == CUSPARSE_ORDER_ROW ? cols : rows;
    SPINFER_CUSPARSE_CHECK(SPINFER_CUSPARSE(cusparseCreateDnMat)(&description, rows, cols, stride,
                                                                 const_cast<Half*>(data), CUDA_R_16F, order));
    return description;
  }
  void release(cusparseDnMatDescr_t description) const {
    SPINFER_CUSPARSE(cusparseDestroyDnMat)(description);
  }

  void convert(const Half* data) {
    const cusparseDnMatDescr_t source = dense(data, m, k, CUSPARSE_ORDER_ROW);
    SPINFER_CUSPARSE_CHECK(SPINFER_CUSPARSE(cusparseCreateCsr)(
        &matrix, m, k, 0, row_begin.get(), nullptr, nullptr, CUSPARSE_INDEX_32I, CUSPARSE_INDEX_32I,
        CUSPARSE_INDEX_BASE_ZERO, CUDA_R_16F));
    size_t bytes = 0;
    const auto algorithm = CUSPARSE_DENSETOSPARSE_ALG_DEFAULT;
    SPINFER_CUSPARSE_CHECK(
        SPINFER_CUSPARSE(cusparseDenseToSparse_bufferSize)(handle, source, matrix, algorithm, &bytes));
    const auto buffer = context.allocate_shared(bytes + 1);
    SPINFER_CUSPARSE_CHECK(
        SPINFER_CUSPARSE(cusparseDenseToSparse_analysis)(handle, source, matrix, algorithm, buffer.get()));
    int64_t rows = 0, cols = 0, nonzeros = 0;
    SPINFER_CUSPARSE_CHECK(SPINFER_CUSPARSE(cusparseSpMatGetSize)(matrix, &rows, &cols, &nonzeros));
    columns = context.allocate_shared(size_t(nonzeros + 1) * sizeof(int32_t));
    values = context.allocate_shared(size_t(nonzeros + 1) * sizeof(Half));
    SPINFER_CUSPARSE_CHECK(
        SPINFER_CUSPARSE(cusparseCsrSetPointers)(matrix, row_begin.get(), columns.get(), values.get()));
    SPINFER_CUSPARSE_CHECK(
        SPINFER_CUSPARSE(cusparseDenseToSparse_convert)(handle, source, matrix, algorithm, buffer.get()));
    SPINFER_CUDA_CHECK(cudaStreamSynchronize(context.stream()));  // the buffer is freed
    release(source);
  }

  Library library;
  Context& context;
  int64_t m, k;
  cusparseHandle_t handle = nullptr;
  cusparseSpMatDescr_t matrix = nullptr;
  std::shared_ptr<void> row_begin, columns, values;
  std::map<int, std::shared_ptr<void>> buffers;  ///< SpMM's scratch by n
};

CusparseWeight::CusparseWeight(Context& context, const Half* dense, int64_t m, int64_t k)
    : state_(std::make_unique<State>(context, m, k)) {
  check(m * k <= INT32_MAX, "cuSPARSE {}×{}: 32-bit indices", m, k);
  state_->convert(dense);
}
CusparseWeight::~CusparseWeight() = default;
CusparseWeight::CusparseWeight(CusparseWeight&&) noexcept = default;
CusparseWeight& CusparseWeight::operator=(CusparseWeight&&) noexcept = default;

void CusparseWeight::multiply(const Half* x, int n, Half* y) const {
  State& s = *state_;
  const Library& library = s.library;
  const cusparseDnMatDescr_t x_description = s.dense(x, s.k, n, CUSPARSE_ORDER_COL);
  const cusparseDnMatDescr_t y_description = s.dense(y, s.m, n, CUSPARSE_ORDER_COL);
  const float one = 1, zero = 0;
  const auto plain = CUSPARSE_OPERATION_NON_TRANSPOSE;
  auto& buffer = s.buffers[n];
  if (!buffer) {
    size_t bytes = 0;
    SPINFER_CUSPARSE_CHECK(SPINFER_CUSPARSE(cusparseSpMM_bufferSize)(
        s.handle, plain, plain, &one, s.matrix, x_description, &zero, y_description, CUDA_R_32F,
        CUSPARSE_SPMM_CSR_ALG2, &bytes));
    buffer = s.context.allocate_shared(bytes + 1);
  }
  SPINFER_CUSPARSE_CHECK(SPINFER_CUSPARSE(cusparseSpMM)(s.handle, plain, plain, &one, s.matrix, x_description,
                                                        &zero, y_description, CUDA_R_32F,
                                                        CUSPARSE_SPMM_CSR_ALG2, buffer.get()));
  s.release(y_description);
  s.release(x_description);
}

}  // namespace spinfer::cuda

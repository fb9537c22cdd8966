// The include direction of the layers (see the table below), checked on every C++ and CUDA file of the tree.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tests/temporary_directory.h"
#include "tests/test_paths.h"

namespace {

namespace fs = std::filesystem;

/// Files below `folder` may include, of our own headers, those whose path begins with one of `allowed`. The
/// first rule whose folder matches a file applies.
struct Layer {
  std::string folder;
  std::vector<std::string> allowed;
};

/// Headers of kernels/ itself: not kernels/cpu/, kernels/cuda/ or kernels/bench/.
bool is_kernel_header(const std::string& include) {
  return include.rfind("kernels/", 0) == 0 && include.find('/', 8) == std::string::npos;
}

/// "kernels/*.h" stands for the headers of kernels/ itself.
const std::vector<Layer> kLayers = {
    {"kernels/format/", {"kernels/check.h", "kernels/half.h", "kernels/thread_pool.h", "kernels/format/"}},
    {"kernels/cpu/", {"kernels/*.h", "kernels/format/", "kernels/cpu/"}},
    {"kernels/cuda/", {"kernels/*.h", "kernels/format/", "kernels/cuda/"}},
    {"kernels/bench/", {"kernels/*.h", "kernels/format/", "kernels/bench/"}},
    {"kernels/", {"kernels/*.h", "kernels/format/"}},
    {"models/", {"kernels/*.h", "kernels/format/", "models/"}},
    {"tokenizer/", {"tokenizer/"}},
    {"engine/", {"kernels/*.h", "kernels/bench/", "models/", "tokenizer/", "engine/"}},
    {"tests/", {"kernels/", "models/", "tokenizer/", "engine/", "tests/"}},
};

bool starts_with(const std::string& text, const std::string& prefix) {
  return text.rfind(prefix, 0) == 0;
}

bool is_ours(const std::string& include) {
  for (const char* folder : {"kernels/", "models/", "tokenizer/", "engine/", "tests/", "configs/"})
    if (starts_with(include, folder)) return true;
  return false;
}

bool is_cuda_header(const std::string& include) {
  for (const char* prefix : {"cuda", "cublas", "cusparse", "curand", "cusolver", "cufft", "cudnn", "nccl",
                             "nvrtc", "nvtx", "nvml", "cub/", "thrust/", "cooperative_groups", "mma.h",
                             "crt/", "device_launch_parameters", "cutlass/", "cute/"})
    if (starts_with(include, prefix)) return true;
  return false;
}

/// The headers a file includes, `#include "a"` and `#include <a>` alike. A quoted name that begins with no
/// folder of ours is relative to the file's own folder.
std::vector<std::string> includes_of(const fs::path& file, const std::string& relative_path) {
  std::ifstream in(file);
  std::vector<std::string> includes;
  for (std::string line; std::getline(in, line);) {
    line.erase(
        std::remove_if(line.begin(), line.end(), [](char c) { return c == ' ' || c == '\t' || c == '\r'; }),
        line.end());
    if (!starts_with(line, "#include") || line.size() < 10) continue;
    const char open = line[8], close = open == '<' ? '>' : '"';
    const size_t end = line.find(close, 9);
    if ((open != '<' && open != '"') || end == std::string::npos) continue;
    std::string include = line.substr(9, end - 9);
    if (open == '"' && !is_ours(include) && !is_cuda_header(include))
      include = (fs::path(relative_path).parent_path() / include).lexically_normal().generic_string();
    includes.push_back(include);
  }
  return includes;
}

/// What is wrong with one include, or nothing.
std::string violation(const std::string& file, const std::string& include) {
  if (is_cuda_header(include))
    return starts_with(file, "kernels/cuda/") ? "" : "CUDA headers belong below kernels/cuda";
  if (!is_ours(include)) return "";
  const auto layer = std::find_if(kLayers.begin(), kLayers.end(), [&](const Layer& candidate) {
    return starts_with(file, candidate.folder);
  });
  if (layer == kLayers.end()) return "no layer is known for this file";
  for (const std::string& allowed : layer->allowed)
    if (allowed == "kernels/*.h" ? is_kernel_header(include) : starts_with(include, allowed)) return "";
  return layer->folder + " may not include it";
}

struct Scan {
  int files = 0;
  int includes = 0;
  std::vector<std::string> violations;  ///< "file: header: why"
};

Scan scan(const fs::path& root) {
  Scan result;
  for (const char* folder : {"kernels", "models", "tokenizer", "engine", "tests"}) {
    if (!fs::exists(root / folder)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      const std::string extension = entry.path().extension();
      if (extension != ".h" && extension != ".cpp" && extension != ".cu" && extension != ".cuh") continue;
      const std::string file = entry.path().lexically_relative(root).generic_string();
      ++result.files;
      for (const std::string& include : includes_of(entry.path(), file)) {
        ++result.includes;
        const std::string why = violation(file, include);
        if (!why.empty()) result.violations.push_back(file + ": " + include + ": " + why);
      }
    }
  }
  return result;
}

TEST(IncludeDirection, HoldsInTheTree) {
  const Scan result = scan(spinfer::test::source_directory());
  EXPECT_GT(result.files, 20);
  EXPECT_GT(result.includes, 100);
  for (const std::string& violation : result.violations) ADD_FAILURE() << violation;
}

/// A tree of one file with one include line.
class Planted : public testing::Test {
 protected:
  size_t violations(const std::string& file, const std::string& line) {
    const spinfer::test::TemporaryDirectory root;
    fs::create_directories((root.path() / file).parent_path());
    root.write(file, "// a file\n" + line + "\nint x;\n");
    const Scan result = scan(root.path());
    EXPECT_EQ(result.files, 1);
    return result.violations.size();
  }
};

TEST_F(Planted, ViolationsAreFound) {
  const std::vector<std::pair<std::string, std::string>> bad = {
      {"kernels/format/a.h", "#include \"kernels/ops.h\""},
      {"kernels/format/a.cpp", "#include \"kernels/cpu/context.h\""},
      {"kernels/backend.cpp", "#include \"kernels/cpu/ops.h\""},
      {"kernels/backend.h", "#include \"cpu/ops.h\""},
      {"kernels/cpu/a.cpp", "#include \"kernels/cuda/context.h\""},
      {"kernels/cpu/a.cpp", "#include \"../cuda/context.h\""},
      {"kernels/cpu/a.cpp", "#include \"models/model.h\""},
      {"kernels/cuda/a.cu", "#include \"kernels/cpu/ops.h\""},
      {"kernels/bench/a.cpp", "#include <cuda_runtime.h>"},
      {"models/a.cpp", "#include \"kernels/cpu/context.h\""},
      {"models/a.cpp", "#include \"engine/engine.h\""},
      {"models/a.cpp", "#include \"tokenizer/tokenizer.h\""},
      {"tokenizer/a.cpp", "#include \"kernels/check.h\""},
      {"engine/a.cpp", "#  include <kernels/cuda/context.h>"},
      {"engine/a.cpp", "#include \"kernels/cpu/linear.h\""},
      {"engine/a.cpp", "#include \"tests/kernels/near.h\""},
      {"engine/apps/a.cpp", "#include <cuda_fp16.h>"},
      {"engine/a.cpp", "#include <nccl.h>"},
      {"models/a.cpp", "#include \"cuda_runtime.h\""},
      {"tests/engine/a.cpp", "#include <cuda_runtime.h>"},
      {"engine/a.cpp", "#include \"kernels/format/tca_bme.h\""},
      {"models/a.h", "\t#include <cub/cub.cuh>"},
      {"kernels/ops.h", "#include <mma.h>"},
      {"kernels/device.h", "#include \"cooperative_groups/memcpy_async.h\""},
      {"kernels/cpu/a.cpp", "#include <cublasLt.h>"},
      {"kernels/format/a.cpp", "#include <cusparse.h>"},
  };
  for (const auto& [file, line] : bad) EXPECT_EQ(violations(file, line), 1u) << file << ": " << line;
}

TEST_F(Planted, LegalIncludesPass) {
  const std::vector<std::pair<std::string, std::string>> good = {
      {"kernels/format/a.cpp", "#include \"kernels/thread_pool.h\""},
      {"kernels/ops.h", "#include \"kernels/format/tca_bme.h\""},
      {"kernels/cpu/a.cpp", "#include \"kernels/ops.h\""},
      {"kernels/cuda/a.cu", "#include <cuda_fp16.h>"},
      {"kernels/cuda/a.cu", "#include \"kernels/cuda/cuda_check.h\""},
      {"models/a.cpp", "#include \"kernels/device.h\""},
      {"tokenizer/a.cpp", "#include <vector>"},
      {"engine/a.cpp", "#include \"models/model.h\""},
      {"engine/apps/a.cpp", "#include \"tokenizer/tokenizer.h\""},
      {"tests/kernels/a.cpp", "#include \"kernels/cpu/ops.h\""},
      {"engine/a.cpp", "// #include <nccl.h>"},
  };
  for (const auto& [file, line] : good) EXPECT_EQ(violations(file, line), 0u) << file << ": " << line;
}

}  // namespace

#include "models/safetensors.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstring>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "kernels/check.h"
#include "models/mapped_file.h"
#include "models/safetensors_writer.h"
#include "tests/temporary_directory.h"

namespace spinfer::test {
namespace {

namespace fs = std::filesystem;

std::string with_length(uint64_t length, const std::string& rest) {
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + rest;
}
std::string file_of(const std::string& header, size_t data_bytes) {
  return with_length(header.size(), header + std::string(data_bytes, '\1'));
}
std::string tensor(const std::string& fields) {
  return "{\"w\":{" + fields + "}}";
}

struct BadFile {
  const char* name;
  std::function<std::string()> bytes;
  const char* says;
};

const std::vector<BadFile>& bad_files() {
  const auto good = [] { return tensor(R"("dtype":"F16","shape":[2,3],"data_offsets":[0,12])"); };
  static const std::vector<BadFile> cases = {
      {"empty", [] { return ""; }, "the file is empty"},
      {"seven_bytes", [] { return "1234567"; }, "7 bytes are too few"},
      {"no_header", [] { return with_length(0, ""); }, "not valid JSON"},
      {"header_past_the_end", [=] { return with_length(1000, good()); },
       "header of 1000 bytes but the file has"},
      {"header_over_the_cap", [=] { return with_length(100'000'001, good()); },
       "at most 100000000 are accepted"},
      {"header_huge", [=] { return with_length(UINT64_MAX, good()); },
       "header of 18446744073709551615 bytes"},
      {"header_wraps", [=] { return with_length(UINT64_MAX - 7, good()); }, "at most 100000000"},
      {"header_cut_off", [=] { return file_of(good().substr(0, 30), 12); }, "not valid JSON"},
      {"header_garbage", [] { return file_of("hello world", 4); }, "not valid JSON"},
      {"header_list", [] { return file_of("[]", 0); }, "must be a JSON object"},
      {"header_number", [] { return file_of("17", 0); }, "must be a JSON object"},
      {"header_text", [] { return file_of("\"F16\"", 0); }, "must be a JSON object"},
      {"two_documents", [=] { return file_of(good() + good(), 12); }, "not valid JSON"},
      {"invalid_utf8", [] { return file_of("{\"\xff\":1}", 0); }, "not valid JSON"},
      {"garbage_behind_a_nul", [=] { return file_of(good() + '\0' + "x", 12); }, "not valid JSON"},
      {"deep_list", [] { return file_of(std::string(1'000'000, '['), 0); }, "must be a JSON object"},
      {"deep_shape", [] { return file_of(R"({"w":{"dtype":"F16","shape":[[[[[[)", 0); }, "unexpected a list"},
      {"deep_object",
       [] {
         std::string s;
         for (int i = 0; i < 100'000; ++i) s += "{\"a\":";
         return file_of(s, 0);
       },
       "unknown field \"a\""},
      {"tensor_is_number", [] { return file_of(R"({"w":5})", 0); }, "unexpected 5 at \"w\""},
      {"tensor_is_null", [] { return file_of(R"({"w":null})", 0); }, "unexpected null at \"w\""},
      {"tensor_is_list", [] { return file_of(R"({"w":[]})", 0); }, "unexpected a list at \"w\""},
      {"unknown_field", [] { return file_of(tensor(R"("dtype":"F16","strides":[1])"), 0); },
       "unknown field \"strides\""},
      {"field_twice", [] { return file_of(tensor(R"("dtype":"F16","dtype":"F16")"), 0); },
       "\"dtype\" appears twice"},
      {"no_dtype", [] { return file_of(tensor(R"("shape":[1],"data_offsets":[0,2])"), 2); },
       "\"dtype\" is missing"},
      {"no_shape", [] { return file_of(tensor(R"("dtype":"F16","data_offsets":[0,2])"), 2); },
       "\"shape\" is missing"},
      {"no_offsets", [] { return file_of(tensor(R"("dtype":"F16","shape":[1])"), 2); },
       "\"data_offsets\" is missing"},
      {"unknown_dtype",
       [] { return file_of(tensor(R"("dtype":"F17","shape":[1],"data_offsets":[0,2])"), 2); },
       "tensor w: unknown dtype \"F17\""},
      {"dtype_number", [] { return file_of(tensor(R"("dtype":16,"shape":[1],"data_offsets":[0,2])"), 2); },
       "unexpected 16 at \"dtype\""},
      {"dtype_list", [] { return file_of(tensor(R"("dtype":["F16"])"), 2); },
       "unexpected a list at \"dtype\""},
      {"shape_text", [] { return file_of(tensor(R"("dtype":"F16","shape":"1","data_offsets":[0,2])"), 2); },
       "unexpected a string at \"shape\""},
      {"shape_negative",
       [] { return file_of(tensor(R"("dtype":"F16","shape":[-1],"data_offsets":[0,2])"), 2); },
       "unexpected -1 at \"shape\""},
      {"shape_fraction",
       [] { return file_of(tensor(R"("dtype":"F16","shape":[1.5],"data_offsets":[0,2])"), 2); },
       "unexpected 1.5 at \"shape\""},
      {"shape_boolean",
       [] { return file_of(tensor(R"("dtype":"F16","shape":[true],"data_offsets":[0,2])"), 2); },
       "unexpected a boolean at \"shape\""},
      {"nine_dimensions",
       [] { return file_of(tensor(R"("dtype":"F16","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,2])"), 2); },
       "more than 8 dimensions"},
      {"dimension_past_int64",
       [] {
         return file_of(tensor(R"("dtype":"F16","shape":[9223372036854775808],"data_offsets":[0,2])"), 2);
       },
       "dimension 9223372036854775808 is too large"},
      {"dimension_past_uint64",
       [] {
         return file_of(tensor(R"("dtype":"F16","shape":[99999999999999999999],"data_offsets":[0,2])"), 2);
       },
       "unexpected 99999999999999999999"},
      {"shape_overflows",
       [] {
         return file_of(tensor(R"("dtype":"F16","shape":[4294967296,4294967296],"data_offsets":[0,2])"), 2);
       },
       "shape [4294967296, 4294967296] is too large"},
      {"shape_overflows_to_fit",  // 2 · 2^63 = 0 modulo 2^64
       [] {
         return file_of(tensor(R"("dtype":"F16","shape":[4611686018427387904,2],"data_offsets":[0,0])"), 0);
       },
       "is too large"},
      {"offsets_one", [] { return file_of(tensor(R"("dtype":"F16","shape":[1],"data_offsets":[0])"), 2); },
       "must hold two numbers"},
      {"offsets_three",
       [] { return file_of(tensor(R"("dtype":"F16","shape":[1],"data_offsets":[0,2,4])"), 2); },
       "more than two numbers"},
      {"offsets_negative",
       [] { return file_of(tensor(R"("dtype":"F16","shape":[1],"data_offsets":[-2,0])"), 2); },
       "unexpected -2"},
      {"offsets_backwards",
       [] { return file_of(tensor(R"("dtype":"F16","shape":[1],"data_offsets":[2,0])"), 2); },
       "bytes [2, 0) are not within"},
      {"offsets_past_the_end",
       [] { return file_of(tensor(R"("dtype":"F16","shape":[6],"data_offsets":[0,12])"), 11); },
       "bytes [0, 12) are not within the file's 11 data bytes (truncated?)"},
      {"offsets_absurd",
       [] {
         return file_of(tensor(R"("dtype":"F16","shape":[1],"data_offsets":[0,18446744073709551615])"), 2);
       },
       "not within the file's 2 data bytes"},
      {"shape_larger_than_span",
       [] { return file_of(tensor(R"("dtype":"F16","shape":[3],"data_offsets":[0,4])"), 4); },
       "F16 [3] takes 6 bytes but \"data_offsets\" spans 4"},
      {"shape_smaller_than_span",
       [] { return file_of(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,8])"), 8); },
       "takes 4 bytes but"},
      {"zero_dimension_with_bytes",
       [] { return file_of(tensor(R"("dtype":"F16","shape":[0,5],"data_offsets":[0,2])"), 2); },
       "takes 0 bytes but"},
      {"overlap",
       [] {
         return file_of(
             R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],)"
             R"("data_offsets":[3,7]}})",
             7);
       },
       "tensor b: begins at byte 3 and overlaps"},
      {"same_bytes_twice",
       [] {
         return file_of(
             R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],)"
             R"("data_offsets":[0,4]}})",
             4);
       },
       "overlaps"},
      {"hole",
       [] {
         return file_of(
             R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],)"
             R"("data_offsets":[5,9]}})",
             9);
       },
       "bytes [4, 5) belong to no tensor"},
      {"hole_at_the_start",
       [] { return file_of(tensor(R"("dtype":"U8","shape":[4],"data_offsets":[4,8])"), 8); },
       "bytes [0, 4) belong to no tensor"},
      {"bytes_after_the_last", [=] { return file_of(good(), 13); },
       "ends at data byte 12 but the file has 13"},
      {"no_tensors_but_bytes", [] { return file_of("{}", 8); }, "ends at data byte 0 but the file has 8"},
      {"name_twice",
       [] {
         return file_of(
             R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],)"
             R"("data_offsets":[4,8]}})",
             8);
       },
       "\"a\" appears twice"},
      {"metadata_number", [] { return file_of(R"({"__metadata__":{"x":1}})", 0); }, "unexpected 1 at \"x\""},
      {"metadata_object", [] { return file_of(R"({"__metadata__":{"x":{}}})", 0); },
       "unexpected an object at \"x\""},
      {"metadata_list", [] { return file_of(R"({"__metadata__":[]})", 0); }, "unexpected a list"},
      {"metadata_twice", [] { return file_of(R"({"__metadata__":{},"__metadata__":{}})", 0); },
       "appears twice"},
      {"metadata_key_twice", [] { return file_of(R"({"__metadata__":{"x":"1","x":"2"}})", 0); },
       "holds \"x\" twice"},
      {"control_characters_in_the_name", [] { return file_of("{\"a\\nb\\u001b[2J\":5}", 0); },
       "at \"a?b?[2J\""},
      {"long_name", [] { return file_of("{\"" + std::string(100'000, 'n') + "\":5}", 0); }, "nnn..."},
  };
  return cases;
}

class RefusedFile : public testing::TestWithParam<size_t> {};
TEST_P(RefusedFile, InOneLineThatNamesIt) {
  const BadFile& bad = bad_files()[GetParam()];
  const TemporaryDirectory dir;
  dir.write("bad.safetensors", bad.bytes());
  try {
    const SafetensorsFile file(dir.path() / "bad.safetensors");
    FAIL() << "accepted";
  } catch (const Error& e) {
    const std::string message = e.what();
    EXPECT_EQ(message.find((dir.path() / "bad.safetensors").string() + ": "), 0u) << message;
    EXPECT_NE(message.find(bad.says), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_LT(message.size(), 500u);
  }
}
INSTANTIATE_TEST_SUITE_P(All, RefusedFile, testing::Range<size_t>(0, bad_files().size()),
                         [](const auto& info) { return bad_files()[info.param].name; });

TEST(Safetensors, EveryTruncationIsRefused) {
  const std::string whole = file_of(
      R"({"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[],"data_offsets":[4,8]}})",
      8);
  const TemporaryDirectory dir;
  dir.write("f", whole);
  EXPECT_EQ(SafetensorsFile(dir.path() / "f").tensors().size(), 2u);
  for (size_t size = 0; size < whole.size(); ++size) {
    dir.write("f", whole.substr(0, size));
    EXPECT_THROW(SafetensorsFile(dir.path() / "f"), Error) << size;
  }
}

TEST(Safetensors, ReadsTensorsInAnyOrderOfTheHeader) {
  const TemporaryDirectory dir;
  dir.write("f",
            file_of(R"({"__metadata__":{"format":"pt"},"b":{"data_offsets":[4,8],"shape":[],"dtype":"F32"},)"
                    R"("none":{"dtype":"I64","shape":[3,0],"data_offsets":[8,8]},)"
                    R"("a":{"dtype":"F16","shape":[1,2],"data_offsets":[0,4]}}     )",
                    8));
  const SafetensorsFile file(dir.path() / "f");
  ASSERT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(file.tensors()[0].name, "a");
  EXPECT_EQ(file.find("b")->shape_text(), "[]");
  EXPECT_EQ(file.bytes(*file.find("b")).size(), 4u);
  EXPECT_EQ(file.bytes(*file.find("none")).size(), 0u);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.find("c"), nullptr);
}

TEST(Safetensors, OnlyRegularFiles) {
  const TemporaryDirectory dir;
  const auto message_of = [](const fs::path& path) -> std::string {
    try {
      SafetensorsFile file(path);
      return "accepted";
    } catch (const Error& e) {
      return e.what();
    }
  };
  ASSERT_EQ(mkfifo((dir.path() / "fifo").c_str(), 0600), 0);
  EXPECT_NE(message_of(dir.path() / "fifo").find("not a regular file"), std::string::npos);
  EXPECT_NE(message_of(dir.path()).find("not a regular file"), std::string::npos);
  EXPECT_NE(message_of("/dev/zero").find("not a regular file"), std::string::npos);
  EXPECT_NE(message_of(dir.path() / "absent").find("No such file"), std::string::npos);
}

std::vector<std::byte> pattern(size_t size) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = std::byte(i * 7 + 1);
  return bytes;
}

TEST(SafetensorsWriter, RoundTripAlignedAndReadableByOthers) {
  const TemporaryDirectory dir;
  const auto path = dir.path() / "out.safetensors";
  const auto odd = pattern(10), aligned = pattern(512);
  SafetensorsWriter writer(path, 1000);
  writer.set_metadata("format", "pt");
  writer.add("odd", Dtype::f16, {5}, odd);
  writer.add("aligned", Dtype::u64, {64}, aligned, 64);
  writer.add("empty", Dtype::f16, {0}, {});
  EXPECT_FALSE(fs::exists(path));
  writer.finish();
  const SafetensorsFile file(path);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  ASSERT_EQ(file.tensors().size(), 4u);  // one of them padding
  const auto bytes = file.bytes(*file.find("aligned"));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % 64, 0u);
  EXPECT_EQ(std::memcmp(bytes.data(), aligned.data(), aligned.size()), 0);
  EXPECT_EQ(std::memcmp(file.bytes(*file.find("odd")).data(), odd.data(), odd.size()), 0);
  EXPECT_EQ(std::distance(fs::directory_iterator(dir.path()), {}), 1);
}

TEST(SafetensorsWriter, LeavesNothingBehindUnlessFinished) {
  const TemporaryDirectory dir;
  {
    SafetensorsWriter writer(dir.path() / "out.safetensors", 1000);
    writer.add("a", Dtype::u8, {100}, pattern(100));
  }
  EXPECT_TRUE(fs::is_empty(dir.path()));
  EXPECT_THROW(SafetensorsWriter(dir.path() / "absent" / "out.safetensors", 1000), Error);
}

TEST(SafetensorsWriter, AFileThatCannotGrowIsNamed) {
  const TemporaryDirectory dir;
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = 10'000;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  std::string message;
  try {
    SafetensorsWriter writer(dir.path() / "out.safetensors", 1000);
    writer.add("a", Dtype::u8, {20'000}, pattern(20'000));
    writer.finish();
  } catch (const Error& e) {
    message = e.what();
  }
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_NE(message.find("out.safetensors.partial: writing"), std::string::npos) << message;
  EXPECT_TRUE(fs::is_empty(dir.path()));
}

TEST(MappedFileDeathTest, AFileCutOffWhileItIsMappedEndsTheProgramWithALine) {
  const TemporaryDirectory directory;
  const fs::path path = directory.path() / "weights";
  std::ofstream(path) << std::string(1 << 16, 'w');
  EXPECT_EXIT(
      {
        end_where_pages_are_lost();
        const auto file = MappedFile::open(path);
        fs::resize_file(path, 1);
        std::exit(int(*static_cast<const volatile std::byte*>(&file->bytes().back())));
      },
      testing::ExitedWithCode(1), "a mapped file cannot be read any more");
}

}  // namespace
}  // namespace spinfer::test

#include "engine/server/api_keys.h"

#include <gtest/gtest.h>

#include "kernels/check.h"
#include "tests/temporary_directory.h"

namespace spinfer {
namespace {

class ApiKeysFile : public testing::Test {
 protected:
  ApiKeys load(const std::string& text) {
    directory_.write("keys", text);
    return ApiKeys::load(directory_.path() / "keys");
  }
  test::TemporaryDirectory directory_;
};

TEST_F(ApiKeysFile, LetsItsKeysIn) {
  const ApiKeys keys = load("# ours\nsk-one\r\n\n  \nsk-two");
  EXPECT_TRUE(keys.required());
  for (const char* good :
       {"Bearer sk-one", "bearer sk-two", "BEARER   sk-one", "Basic dTpzay1vbmU=", "Basic OnNrLXR3bw=="})
    EXPECT_TRUE(keys.allow(good)) << good;
  for (const char* bad :
       {"", "Bearer", "Bearer ", "Bearer sk-on", "Bearer sk-onee", "Bearer sk-one ", "Bearer # ours",
        "sk-one", "Basic sk-one", "Basic", "Basic ====", "Digest sk-one", "Basic dTo="})
    EXPECT_FALSE(keys.allow(bad)) << bad;
  EXPECT_FALSE(keys.allow("Bearer " + std::string(5000, 'x')));
}

TEST_F(ApiKeysFile, LetsEverybodyInWithoutOne) {
  EXPECT_TRUE(ApiKeys().allow(""));
  EXPECT_FALSE(ApiKeys().required());
}

TEST_F(ApiKeysFile, IsRefusedWithItsLine) {
  for (const std::string& text :
       {std::string("a\nb c\n"), std::string("a\n\x01\n"), "a\n" + std::string(257, 'k') + "\n"}) {
    try {
      load(text);
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("keys line 2"), std::string::npos) << error.what();
    }
  }
  EXPECT_THROW(load(""), Error);
  EXPECT_THROW(load("# nothing\n"), Error);
  EXPECT_THROW(ApiKeys::load("/nowhere/keys"), Error);
}

}  // namespace
}  // namespace spinfer

# cmake -DINPUT=page.html -DOUTPUT=page.cpp -P embed_page.cmake: a source file whose page_html() returns INPUT's bytes.
file(READ "${INPUT}" hex HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
file(WRITE "${OUTPUT}" "#include \"engine/server/page.h\"

namespace spinfer {

std::string_view page_html() {
  static constexpr unsigned char kBytes[] = {${bytes}};
  return {reinterpret_cast<const char*>(kBytes), sizeof(kBytes)};
}

}  // namespace spinfer
")

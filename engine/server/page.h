// The page at "/": engine/server/page.html, put into the program by the build.
#pragma once

#include <string_view>

namespace spinfer {

std::string_view page_html();

}  // namespace spinfer

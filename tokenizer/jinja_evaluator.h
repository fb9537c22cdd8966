// Runs a parsed template. Internal to the chat templates.
#pragma once

#include <string>

#include "tokenizer/jinja_syntax.h"
#include "tokenizer/jinja_value.h"

namespace spinfer::jinja {

/// The text `source` renders with these names defined. Throws `ChatTemplateError`.
std::string evaluate(const Template& source, const Dict& globals);

}  // namespace spinfer::jinja

// Jinja: from template text to syntax tree. Internal to the chat templates.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace spinfer::jinja {

// ---- tokens

enum class TokenKind {
  text,
  block_begin,
  block_end,
  print_begin,
  print_end,
  name,
  string,
  integer,
  decimal,
  symbol,
  end
};

struct Token {
  TokenKind kind;
  std::string text;  ///< of text and string: the content; else as written
  int line;
};

/// Template text → tokens, with whitespace control applied (trim_blocks and lstrip_blocks on, a last newline
/// dropped). Throws `ChatTemplateError` naming the line.
std::vector<Token> tokenize(std::string_view source);

// ---- tree

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;
struct Argument {
  std::string name;  ///< empty: positional
  ExpressionPtr value;
};

struct Literal {
  std::variant<std::nullptr_t, bool, int64_t, double, std::string> value;
};
struct Name {
  std::string name;
};
struct ListLiteral {
  std::vector<ExpressionPtr> items;
};
struct DictLiteral {
  std::vector<std::pair<ExpressionPtr, ExpressionPtr>> items;
};
struct Member {  ///< object.name or object[key]
  ExpressionPtr object, key;
};
struct Slice {  ///< each bound may be null
  ExpressionPtr object, start, stop, step;
};
struct Call {  ///< callee(…); a method if callee is a Member
  ExpressionPtr callee;
  std::vector<Argument> arguments;
};
struct Filter {
  ExpressionPtr input;
  std::string name;
  std::vector<Argument> arguments;
};
struct Test {
  ExpressionPtr input;
  std::string name;
  std::vector<Argument> arguments;
  bool negated;
};
struct Unary {
  std::string op;  ///< "not", "-", "+"
  ExpressionPtr operand;
};
struct Binary {
  std::string op;  ///< "or", "and", "+", "-", "*", "/", "//", "%", "~"
  ExpressionPtr left, right;
};
struct Comparison {  ///< first op[0] rest[0] and rest[0] op[1] rest[1] …
  ExpressionPtr first;
  std::vector<std::pair<std::string, ExpressionPtr>> rest;
};
struct Conditional {  ///< otherwise may be null
  ExpressionPtr then, condition, otherwise;
};

struct Expression {
  int line;
  std::variant<Literal, Name, ListLiteral, DictLiteral, Member, Slice, Call, Filter, Test, Unary, Binary,
               Comparison, Conditional>
      node;
};

struct Statement;
using Body = std::vector<Statement>;

struct Text {
  std::string text;
};
struct Print {
  ExpressionPtr value;
};
struct If {
  std::vector<std::pair<ExpressionPtr, Body>> branches;
  Body otherwise;
};
struct For {
  std::vector<std::string> targets;
  ExpressionPtr iterable, condition;  ///< condition may be null
  Body body, otherwise;
};
struct Set {
  std::vector<std::string> targets;  ///< more than one: unpacked
  std::string attribute;             ///< `set ns.attribute = …`; empty otherwise
  ExpressionPtr value;               ///< null: the value is what `body` renders
  Body body;
};
struct LoopControl {
  bool is_break;
};

struct Statement {
  int line = 0;
  std::variant<Text, Print, If, For, Set, LoopControl> node;
};

struct Template {
  Body body;
};

/// Throws `ChatTemplateError` naming the line and what is not understood.
Template parse(std::string_view source);

[[noreturn]] void fail_at(int line, std::string_view problem);

}  // namespace spinfer::jinja

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <set>

#include "tokenizer/jinja_syntax.h"

namespace spinfer::jinja {
namespace {

constexpr int kMaxDepth = 100;  // of nested statements and expressions
constexpr int kMaxChain = 100;  // operators on one level; both together bound the tree's height

template <class Node>
ExpressionPtr make(int line, Node node) {
  return std::make_unique<Expression>(Expression{line, std::move(node)});
}

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)) {}

  Template run() {
    Template result;
    result.body = body({});
    if (current().kind != TokenKind::end)
      fail_at(current().line, fmt::format("'{}' has no beginning", tokens_[at_ + 1].text));
    return result;
  }

 private:
  struct Depth {
    explicit Depth(Parser& parser) : parser(parser) {
      if (++parser.depth_ > kMaxDepth)
        fail_at(parser.current().line, fmt::format("nested deeper than {} levels", kMaxDepth));
    }
    ~Depth() { --parser.depth_; }
    Parser& parser;
  };

  // ---- tokens

  const Token& current() const { return tokens_[at_]; }
  const Token& next() {
    const Token& token = tokens_[at_];
    if (token.kind != TokenKind::end) ++at_;
    return token;
  }
  bool is_symbol(std::string_view text) const {
    return current().kind == TokenKind::symbol && current().text == text;
  }
  bool is_name(std::string_view text) const {
    return current().kind == TokenKind::name && current().text == text;
  }
  bool take_symbol(std::string_view text) { return is_symbol(text) && (++at_, true); }
  bool take_name(std::string_view text) { return is_name(text) && (++at_, true); }
  void expect_symbol(std::string_view text) {
    if (!take_symbol(text))
      fail_at(current().line, fmt::format("'{}' expected before '{}'", text, shown(current())));
  }
  void expect_name(std::string_view text) {
    if (!take_name(text))
      fail_at(current().line, fmt::format("'{}' expected before '{}'", text, shown(current())));
  }
  void expect(TokenKind kind, std::string_view text) {
    if (current().kind != kind)
      fail_at(current().line, fmt::format("'{}' expected before '{}'", text, shown(current())));
    next();
  }
  std::string identifier() {
    if (current().kind != TokenKind::name)
      fail_at(current().line, fmt::format("a name expected before '{}'", shown(current())));
    return next().text;
  }
  static std::string shown(const Token& token) { return token.text.substr(0, 40); }

  // ---- statements

  /// Statements up to a block that begins with one of `ends` (left in place), or the end of the template.
  Body body(std::initializer_list<std::string_view> ends) {
    const Depth depth(*this);
    Body statements;
    for (;;) {
      const Token& token = current();
      if (token.kind == TokenKind::text) {
        add(statements, token.line).emplace<Text>(Text{next().text});
      } else if (token.kind == TokenKind::print_begin) {
        next();
        add(statements, token.line).emplace<Print>(Print{tuple()});
        expect(TokenKind::print_end, "}}");
      } else if (token.kind == TokenKind::block_begin) {
        const std::string& word = tokens_[at_ + 1].text;
        if (std::ranges::find(ends, word) != ends.end() || word.starts_with("end") || word == "else" ||
            word == "elif")
          return statements;
        next();
        statement(statements);
      } else {
        return statements;
      }
    }
  }

  /// The block that must come now.
  void end_block(std::string_view name) {
    if (current().kind != TokenKind::block_begin || tokens_[at_ + 1].text != name) {
      const bool at_end = current().kind == TokenKind::end;
      fail_at(current().line, fmt::format("'{}' expected before '{}'", name,
                                          at_end ? shown(current()) : shown(tokens_[at_ + 1])));
    }
    at_ += 2;
    expect(TokenKind::block_end, "%}");
  }
  bool at_block(std::string_view name) const {
    return current().kind == TokenKind::block_begin && tokens_[at_ + 1].text == name;
  }

  /// A new last statement, to be filled in. (Moving variants into place makes g++ 12 warn of members that are
  /// not there.)
  static decltype(Statement::node)& add(Body& statements, int line) {
    Statement& added = statements.emplace_back();
    added.line = line;
    return added.node;
  }

  void statement(Body& out) {
    const int line = current().line;
    const std::string word = identifier();
    if (word == "if") {
      add(out, line).emplace<If>(if_block());
    } else if (word == "for") {
      add(out, line).emplace<For>(for_block());
    } else if (word == "set") {
      add(out, line).emplace<Set>(set_block());
    } else if (word == "break" || word == "continue") {
      if (loops_ == 0) fail_at(line, fmt::format("'{}' outside of a loop", word));
      expect(TokenKind::block_end, "%}");
      add(out, line).emplace<LoopControl>(LoopControl{word == "break"});
    } else {
      fail_at(line, fmt::format("'{}' is not supported", word.substr(0, 40)));
    }
  }

  If if_block() {
    If node;
    for (;;) {
      ExpressionPtr condition = tuple();
      expect(TokenKind::block_end, "%}");
      node.branches.emplace_back(std::move(condition), body({"elif", "else", "endif"}));
      if (!at_block("elif")) break;
      at_ += 2;
    }
    if (at_block("else")) {
      end_block("else");
      node.otherwise = body({"endif"});
    }
    end_block("endif");
    return node;
  }

  For for_block() {
    For node;
    node.targets = targets();
    expect_name("in");
    node.iterable = tuple(false);
    if (take_name("if")) node.condition = expression();
    if (is_name("recursive")) fail_at(current().line, "'recursive' is not supported");
    expect(TokenKind::block_end, "%}");
    ++loops_;
    node.body = body({"else", "endfor"});
    --loops_;
    if (at_block("else")) {
      end_block("else");
      node.otherwise = body({"endfor"});
    }
    end_block("endfor");
    return node;
  }

  Set set_block() {
    Set node;
    node.targets = targets();
    if (node.targets.size() == 1 && take_symbol(".")) node.attribute = identifier();
    if (take_symbol("=")) {
      node.value = tuple();
      expect(TokenKind::block_end, "%}");
      return node;
    }
    if (is_symbol("|")) fail_at(current().line, "'set' with a filter is not supported");
    expect(TokenKind::block_end, "%}");
    node.body = body({"endset"});
    end_block("endset");
    return node;
  }

  std::vector<std::string> targets() {
    const bool parenthesis = take_symbol("(");
    std::vector<std::string> names{identifier()};
    while (take_symbol(",")) names.push_back(identifier());
    if (parenthesis) expect_symbol(")");
    return names;
  }

  void check_chain(int operators) const {
    if (operators > kMaxChain)
      fail_at(current().line, fmt::format("an expression with more than {} operators in a row", kMaxChain));
  }

  // ---- expressions, loosest first

  /// One expression, or several with commas between: a tuple.
  ExpressionPtr tuple(bool with_condition = true) {
    const int line = current().line;
    ExpressionPtr first = with_condition ? expression() : disjunction();
    if (!is_symbol(",")) return first;
    ListLiteral list;
    list.items.push_back(std::move(first));
    while (take_symbol(",")) {
      if (is_symbol(")") || current().kind == TokenKind::block_end || current().kind == TokenKind::print_end)
        break;
      list.items.push_back(with_condition ? expression() : disjunction());
    }
    return make(line, std::move(list));
  }

  ExpressionPtr expression() {
    const Depth depth(*this);
    ExpressionPtr value = disjunction();
    for (int chain = 0; is_name("if"); check_chain(++chain)) {
      const int line = next().line;
      ExpressionPtr condition = disjunction();
      ExpressionPtr otherwise = take_name("else") ? expression() : nullptr;
      value = make(line, Conditional{std::move(value), std::move(condition), std::move(otherwise)});
    }
    return value;
  }

  ExpressionPtr disjunction() {
    ExpressionPtr left = conjunction();
    for (int chain = 0; is_name("or"); check_chain(++chain)) {
      const int line = next().line;
      left = make(line, Binary{"or", std::move(left), conjunction()});
    }
    return left;
  }

  ExpressionPtr conjunction() {
    ExpressionPtr left = negation();
    for (int chain = 0; is_name("and"); check_chain(++chain)) {
      const int line = next().line;
      left = make(line, Binary{"and", std::move(left), negation()});
    }
    return left;
  }

  ExpressionPtr negation() {
    if (!is_name("not")) return comparison();
    const Depth depth(*this);
    const int line = next().line;
    return make(line, Unary{"not", negation()});
  }

  ExpressionPtr comparison() {
    const int line = current().line;
    Comparison node{sum(), {}};
    for (;;) {
      std::string op;
      if (is_name("in")) {
        op = next().text;
      } else if (is_name("not") && tokens_[at_ + 1].kind == TokenKind::name &&
                 tokens_[at_ + 1].text == "in") {
        at_ += 2;
        op = "not in";
      } else if (is_one_of({"==", "!=", "<", "<=", ">", ">="})) {
        op = next().text;
      } else {
        break;
      }
      node.rest.emplace_back(std::move(op), sum());
    }
    return node.rest.empty() ? std::move(node.first) : make(line, std::move(node));
  }

  bool is_one_of(std::initializer_list<std::string_view> symbols) const {
    return current().kind == TokenKind::symbol && std::ranges::find(symbols, current().text) != symbols.end();
  }

  ExpressionPtr sum() { return binary({"+", "-"}, &Parser::concatenation); }
  ExpressionPtr concatenation() { return binary({"~"}, &Parser::product); }
  ExpressionPtr product() {
    ExpressionPtr value = binary({"*", "/", "//", "%"}, &Parser::unary_with_filters);
    if (is_symbol("**")) fail_at(current().line, "'**' is not supported");
    return value;
  }

  ExpressionPtr binary(std::initializer_list<std::string_view> ops, ExpressionPtr (Parser::*operand)()) {
    ExpressionPtr left = (this->*operand)();
    for (int chain = 0; is_one_of(ops); check_chain(++chain)) {
      const Token& op = next();
      left = make(op.line, Binary{op.text, std::move(left), (this->*operand)()});
    }
    return left;
  }

  ExpressionPtr unary_with_filters() { return filters(unary()); }

  ExpressionPtr unary() {
    if (is_one_of({"-", "+"})) {
      const Depth depth(*this);
      const Token& op = next();
      return make(op.line, Unary{op.text, unary()});
    }
    return postfix(primary());
  }

  ExpressionPtr primary() {
    const Depth depth(*this);
    const Token& token = current();
    const int line = token.line;
    switch (token.kind) {
      case TokenKind::name:
        return name();
      case TokenKind::string: {
        std::string text = next().text;
        while (current().kind == TokenKind::string) text += next().text;
        return make(line, Literal{std::move(text)});
      }
      case TokenKind::integer:
        return make(line, Literal{number<int64_t>()});
      case TokenKind::decimal:
        return make(line, Literal{number<double>()});
      default:
        break;
    }
    if (take_symbol("(")) {
      if (take_symbol(")")) return make(line, ListLiteral{});
      ExpressionPtr value = tuple();
      expect_symbol(")");
      return value;
    }
    if (take_symbol("[")) return list(line);
    if (take_symbol("{")) return dictionary(line);
    fail_at(line, fmt::format("unexpected '{}'", shown(token)));
  }

  template <class T>
  T number() {
    const Token& token = next();
    T value{};
    const auto [end, error] =
        std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
    if (error != std::errc() || end != token.text.data() + token.text.size())
      fail_at(token.line, fmt::format("{} is too large a number", shown(token)));
    return value;
  }

  ExpressionPtr name() {
    const Token& token = next();
    const std::string& word = token.text;
    if (word == "true" || word == "True") return make(token.line, Literal{true});
    if (word == "false" || word == "False") return make(token.line, Literal{false});
    if (word == "none" || word == "None") return make(token.line, Literal{nullptr});
    static const std::set<std::string, std::less<>> kReserved = {"and", "else", "if", "in",
                                                                 "is",  "not",  "or"};
    if (kReserved.contains(word)) fail_at(token.line, fmt::format("unexpected '{}'", word));
    return make(token.line, Name{word});
  }

  ExpressionPtr list(int line) {
    ListLiteral node;
    while (!take_symbol("]")) {
      if (!node.items.empty()) expect_symbol(",");
      if (take_symbol("]")) break;
      node.items.push_back(expression());
    }
    return make(line, std::move(node));
  }

  ExpressionPtr dictionary(int line) {
    DictLiteral node;
    while (!take_symbol("}")) {
      if (!node.items.empty()) expect_symbol(",");
      if (take_symbol("}")) break;
      ExpressionPtr key = expression();
      expect_symbol(":");
      node.items.emplace_back(std::move(key), expression());
    }
    return make(line, std::move(node));
  }

  ExpressionPtr postfix(ExpressionPtr value) {
    for (int chain = 0;; check_chain(++chain)) {
      const int line = current().line;
      if (take_symbol(".")) {
        const bool is_index = current().kind == TokenKind::integer;
        ExpressionPtr key =
            is_index ? make(line, Literal{number<int64_t>()}) : make(line, Literal{identifier()});
        value = make(line, Member{std::move(value), std::move(key)});
      } else if (take_symbol("[")) {
        value = subscript(line, std::move(value));
      } else if (take_symbol("(")) {
        value = make(line, Call{std::move(value), arguments()});
      } else {
        return value;
      }
    }
  }

  ExpressionPtr subscript(int line, ExpressionPtr object) {
    ExpressionPtr start = is_symbol(":") ? nullptr : expression();
    if (!is_symbol(":")) {
      expect_symbol("]");
      return make(line, Member{std::move(object), std::move(start)});
    }
    next();
    const auto bound = [this] { return is_symbol(":") || is_symbol("]") ? nullptr : expression(); };
    ExpressionPtr stop = bound();
    ExpressionPtr step = take_symbol(":") ? bound() : nullptr;
    expect_symbol("]");
    return make(line, Slice{std::move(object), std::move(start), std::move(stop), std::move(step)});
  }

  /// After "(".
  std::vector<Argument> arguments() {
    std::vector<Argument> list;
    while (!take_symbol(")")) {
      if (!list.empty()) expect_symbol(",");
      if (take_symbol(")")) break;
      Argument argument;
      if (is_symbol("*") || is_symbol("**"))
        fail_at(current().line, "'*' in an argument list is not supported");
      const Token& after = tokens_[std::min(at_ + 1, tokens_.size() - 1)];
      if (current().kind == TokenKind::name && after.kind == TokenKind::symbol && after.text == "=") {
        argument.name = identifier();
        next();
      }
      argument.value = expression();
      list.push_back(std::move(argument));
    }
    return list;
  }

  ExpressionPtr filters(ExpressionPtr value) {
    for (int chain = 0;; check_chain(++chain)) {
      const int line = current().line;
      if (take_symbol("|")) {
        Filter node{std::move(value), identifier(), {}};
        if (take_symbol("(")) node.arguments = arguments();
        value = make(line, std::move(node));
      } else if (take_name("is")) {
        value = test(line, std::move(value));
      } else {
        return value;
      }
    }
  }

  ExpressionPtr test(int line, ExpressionPtr value) {
    Test node{std::move(value), {}, {}, take_name("not")};
    node.name = identifier();
    const bool ends = is_name("and") || is_name("or") || is_name("else") || is_name("if") || is_name("is") ||
                      is_name("not") || is_name("in");
    const TokenKind kind = current().kind;
    if (take_symbol("(")) {
      node.arguments = arguments();
    } else if ((kind == TokenKind::name && !ends) || kind == TokenKind::string ||
               kind == TokenKind::integer || kind == TokenKind::decimal) {
      node.arguments.push_back({{}, postfix(primary())});
    }
    return make(line, std::move(node));
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int loops_ = 0;
};

}  // namespace

Template parse(std::string_view source) {
  return Parser(source).run();
}

}  // namespace spinfer::jinja

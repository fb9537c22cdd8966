#include "tokenizer/jinja_evaluator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "tokenizer/chat_template.h"
#include "tokenizer/jinja_arguments.h"

namespace spinfer::jinja {
namespace {

constexpr int64_t kMaxSteps = 2'000'000;
constexpr int kMaxDepth = 400;

enum class Flow { normal, break_loop, continue_loop };

class Evaluator {
 public:
  explicit Evaluator(const Dict& globals) { scopes_.push_back(globals); }

  std::string render(const Template& source) {
    run(source.body);
    return std::move(out_);
  }

 private:
  void count_steps(int64_t count, int line) {
    if ((steps_ += count) > kMaxSteps) fail_at(line, fmt::format("more than {} steps", kMaxSteps));
  }

  // ---- names

  const Value* lookup(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      if (const Value* value = find(*scope, name)) return value;
    }
    return nullptr;
  }
  static void put(Dict& dict, const std::string& name, Value value) {
    const auto entry = std::ranges::find(dict, name, &Dict::value_type::first);
    if (entry == dict.end()) {
      dict.emplace_back(name, std::move(value));
    } else {
      entry->second = std::move(value);
    }
  }
  void assign(const std::vector<std::string>& targets, Value value, int line) {
    if (targets.size() == 1) return put(scopes_.back(), targets[0], std::move(value));
    if (!value.list() || value.list()->size() != targets.size())
      fail_at(line, fmt::format("{} names for {}", targets.size(), type_name(value)));
    for (size_t i = 0; i < targets.size(); ++i) put(scopes_.back(), targets[i], (*value.list())[i]);
  }

  // ---- statements

  Flow run(const Body& body) {
    for (const Statement& statement : body) {
      count_steps(1, statement.line);
      const Flow flow =
          std::visit([&](const auto& node) { return run(node, statement.line); }, statement.node);
      if (flow != Flow::normal) return flow;
    }
    return Flow::normal;
  }

  Flow run(const Text& node, int line) { return print(node.text, line); }
  Flow run(const Print& node, int line) { return print(to_text(evaluate(node.value), line), line); }
  Flow print(const std::string& text, int line) {
    out_ += text;
    if (out_.size() > kMaxTextBytes) fail_at(line, fmt::format("more than {} bytes of text", kMaxTextBytes));
    return Flow::normal;
  }
  Flow run(const If& node, int) {
    for (const auto& [condition, body] : node.branches) {
      if (truth(evaluate(condition))) return run(body);
    }
    return run(node.otherwise);
  }
  Flow run(const LoopControl& node, int) { return node.is_break ? Flow::break_loop : Flow::continue_loop; }

  Flow run(const Set& node, int line) {
    Value value;
    if (node.value) {
      value = evaluate(node.value);
    } else {
      std::string before = std::exchange(out_, {});
      run(node.body);
      value = {std::exchange(out_, std::move(before))};
    }
    if (node.attribute.empty()) {
      assign(node.targets, std::move(value), line);
      return Flow::normal;
    }
    const Value* object = lookup(node.targets[0]);
    const auto* names = object ? std::get_if<std::shared_ptr<Namespace>>(&object->data) : nullptr;
    if (!names) fail_at(line, fmt::format("'{}' is no namespace", node.targets[0]));
    put((*names)->values, node.attribute, std::move(value));
    return Flow::normal;
  }

  Flow run(const For& node, int line) {
    List items = iterated(evaluate(node.iterable), line);
    if (node.condition) {
      std::erase_if(items, [&](const Value& item) {
        scopes_.emplace_back();
        assign(node.targets, item, line);
        const bool wanted = truth(evaluate(node.condition));
        scopes_.pop_back();
        return !wanted;
      });
    }
    if (items.empty()) return run(node.otherwise);
    for (size_t i = 0; i < items.size(); ++i) {
      scopes_.emplace_back();
      put(scopes_.back(), "loop", loop_state(items, i));
      assign(node.targets, items[i], line);
      const Flow flow = run(node.body);
      scopes_.pop_back();
      if (flow == Flow::break_loop) break;
    }
    return Flow::normal;
  }

  static Value loop_state(const List& items, size_t i) {
    const auto count = int64_t(items.size()), at = int64_t(i);
    Dict loop{{"index", {at + 1}},        {"index0", {at}},
              {"revindex", {count - at}}, {"revindex0", {count - at - 1}},
              {"first", {i == 0}},        {"last", {i + 1 == items.size()}},
              {"length", {count}}};
    if (i > 0) loop.emplace_back("previtem", items[i - 1]);
    if (i + 1 < items.size()) loop.emplace_back("nextitem", items[i + 1]);
    return Value::dict(std::move(loop));
  }

  /// A copy of the items: as many steps.
  List iterated(const Value& value, int line) {
    const Value items = apply_filter("list", value, {}, line);
    count_steps(int64_t(items.list()->size()), line);
    return *items.list();
  }

  // ---- expressions

  Value evaluate(const ExpressionPtr& expression) {
    if (++depth_ > kMaxDepth) fail_at(expression->line, "an expression is nested too deeply");
    count_steps(1, expression->line);
    Value value =
        std::visit([&](const auto& node) { return compute(node, expression->line); }, expression->node);
    --depth_;
    return value;
  }

  Value compute(const Literal& node, int) {
    return std::visit([](const auto& value) { return Value{value}; }, node.value);
  }
  Value compute(const Name& node, int) {
    if (const Value* value = lookup(node.name)) return *value;
    if (node.name == "namespace" || is_function(node.name)) return {Function{node.name}};
    return {Undefined{node.name}};
  }
  Value compute(const ListLiteral& node, int) {
    List items;
    for (const ExpressionPtr& item : node.items) items.push_back(evaluate(item));
    return Value::list(std::move(items));
  }
  Value compute(const DictLiteral& node, int line) {
    Dict dict;
    for (const auto& [key, value] : node.items) {
      const Value name = evaluate(key);
      if (!name.string()) fail_at(line, fmt::format("{} as a key is not supported", type_name(name)));
      put(dict, *name.string(), evaluate(value));
    }
    return Value::dict(std::move(dict));
  }

  Value compute(const Member& node, int line) {
    return member(evaluate(node.object), evaluate(node.key), line);
  }

  static Value member(const Value& object, const Value& key, int line) {
    if (const auto* missing = std::get_if<Undefined>(&object.data))
      fail_at(line, fmt::format("'{}' is undefined", missing->name));
    if (key.integral()) return item(object, key.integer(), line);
    const Value* value = nullptr;
    const auto* names = std::get_if<std::shared_ptr<Namespace>>(&object.data);
    if (key.string() && object.dict()) value = find(*object.dict(), *key.string());
    if (key.string() && names) value = find((*names)->values, *key.string());
    return value ? *value : Value{Undefined{key.string() ? *key.string() : "member"}};
  }

  static Value item(const Value& object, int64_t index, int line) {
    if (!object.list() && !object.string()) return {Undefined{"item"}};
    const Value all = object.list() ? object : apply_filter("list", object, {}, line);
    const auto count = int64_t(all.list()->size());
    if (index < 0) index += count;
    return index >= 0 && index < count ? (*all.list())[size_t(index)] : Value{Undefined{"item"}};
  }

  Value compute(const Slice& node, int line) {
    const Value object = evaluate(node.object);
    if (!object.list() && !object.string()) fail_at(line, fmt::format("a slice of {}", type_name(object)));
    const List items = iterated(object, line);
    const auto count = int64_t(items.size());
    const auto bound = [&](const ExpressionPtr& expression) -> std::optional<int64_t> {
      if (!expression) return {};
      const Value value = evaluate(expression);
      if (value.none()) return {};
      if (!value.integral()) fail_at(line, fmt::format("{} as the bound of a slice", type_name(value)));
      return value.integer();
    };
    const std::optional<int64_t> start = bound(node.start), stop = bound(node.stop);
    const int64_t step = bound(node.step).value_or(1);
    if (step == 0 || step < -count - 1) fail_at(line, "the step of a slice is out of range");
    // As Python: bounds count from the end if negative, and are cut to the list.
    const int64_t lowest = step > 0 ? 0 : -1, highest = step > 0 ? count : count - 1;
    const auto cut = [&](int64_t at) { return std::clamp(at < 0 ? at + count : at, lowest, highest); };
    const int64_t first = start ? cut(*start) : step > 0 ? lowest : highest;
    const int64_t end = stop ? cut(*stop) : step > 0 ? highest : lowest;
    List taken;
    for (int64_t i = first; step > 0 ? i < end : i > end; i += std::min(step, count + 1))
      taken.push_back(items[size_t(i)]);
    Value list = Value::list(std::move(taken));
    return object.list() ? list : apply_filter("join", list, {}, line);
  }

  List positional(const std::vector<Argument>& arguments, const Callee& callee, int line) {
    List values;
    bool named = false;
    for (const Argument& argument : arguments) {
      if (argument.name.empty()) {
        if (named)
          fail_at(line,
                  fmt::format("'{}' has an argument without a name after one with a name", callee.name));
        values.push_back(evaluate(argument.value));
        continue;
      }
      named = true;
      const auto at = argument_position(callee, argument.name);
      if (!at)
        fail_at(line, fmt::format("argument '{}' of '{}' is not supported", argument.name, callee.name));
      if (*at >= values.size()) values.resize(*at + 1, Value{Undefined{"argument"}});
      if (!values[*at].undefined())
        fail_at(line, fmt::format("argument '{}' of '{}' is given twice", argument.name, callee.name));
      values[*at] = evaluate(argument.value);
    }
    return values;
  }

  Value compute(const Call& node, int line) {
    if (const auto* method = std::get_if<Member>(&node.callee->node)) {
      const Value object = evaluate(method->object), name = evaluate(method->key);
      if (!name.string()) fail_at(line, "a call of something that is no function");
      const Callee callee{object.string() ? Callee::string_method : Callee::dict_method, *name.string()};
      return call_method(object, *name.string(), positional(node.arguments, callee, line), line);
    }
    const Value callee = evaluate(node.callee);
    const auto* function = std::get_if<Function>(&callee.data);
    const auto* name = std::get_if<Name>(&node.callee->node);
    if (!function) fail_at(line, fmt::format("function '{}' is not supported", name ? name->name : "?"));
    if (function->name == "namespace") return make_namespace(node.arguments, line);
    const Callee known{Callee::function, function->name};
    return call_function(function->name, positional(node.arguments, known, line), line);
  }

  Value make_namespace(const std::vector<Argument>& arguments, int line) {
    auto names = std::make_shared<Namespace>();
    for (const Argument& argument : arguments) {
      if (argument.name.empty()) fail_at(line, "namespace needs named arguments");
      put(names->values, argument.name, evaluate(argument.value));
    }
    return {std::move(names)};
  }

  Value compute(const Filter& node, int line) {
    const Value input = evaluate(node.input);
    return apply_filter(node.name, input, positional(node.arguments, {Callee::filter, node.name}, line),
                        line);
  }
  Value compute(const Test& node, int line) {
    const Value input = evaluate(node.input);
    const List arguments = positional(node.arguments, {Callee::test, node.name}, line);
    return {apply_test(node.name, input, arguments, line) != node.negated};
  }

  Value compute(const Unary& node, int line) {
    const Value value = evaluate(node.operand);
    if (node.op == "not") return {!truth(value)};
    if (!value.number()) fail_at(line, fmt::format("'{}' before {}", node.op, type_name(value)));
    const int sign = node.op == "-" ? -1 : 1;
    if (value.integral()) return {int64_t(uint64_t(sign) * uint64_t(value.integer()))};
    return {sign * value.decimal()};
  }

  Value compute(const Binary& node, int line) {
    Value left = evaluate(node.left);
    if (node.op == "or") return truth(left) ? left : evaluate(node.right);
    if (node.op == "and") return truth(left) ? evaluate(node.right) : left;
    const Value right = evaluate(node.right);
    if (node.op == "~") return concatenated(to_text(left, line), to_text(right, line), line);
    if (node.op == "+" && left.string() && right.string())
      return concatenated(*left.string(), *right.string(), line);
    if (node.op == "+" && left.list() && right.list()) {
      List items = *left.list();
      items.insert(items.end(), right.list()->begin(), right.list()->end());
      count_steps(int64_t(items.size()), line);
      return Value::list(std::move(items));
    }
    for (const Value* side : std::initializer_list<const Value*>{&left, &right}) {
      if (const auto* missing = std::get_if<Undefined>(&side->data))
        fail_at(line, fmt::format("'{}' is undefined", missing->name));
    }
    if (!left.number() || !right.number()) {
      fail_at(line, fmt::format("{} '{}' {} is not supported", type_name(left), node.op, type_name(right)));
    }
    return arithmetic(node.op, left, right, line);
  }

  static Value concatenated(const std::string& left, const std::string& right, int line) {
    if (left.size() + right.size() > kMaxTextBytes) fail_at(line, "a text of more than 32 MiB");
    return {left + right};
  }

  /// Python's: `/` is of floats, `//` and `%` round towards minus infinity.
  static Value arithmetic(const std::string& op, const Value& left, const Value& right, int line) {
    const bool divides = op == "/" || op == "//" || op == "%";
    if (divides && right.decimal() == 0) fail_at(line, "division by zero");
    if (op == "/" || !left.integral() || !right.integral()) {
      const double a = left.decimal(), b = right.decimal();
      if (op == "+") return {a + b};
      if (op == "-") return {a - b};
      if (op == "*") return {a * b};
      if (op == "/") return {a / b};
      return {op == "//" ? std::floor(a / b) : a - b * std::floor(a / b)};
    }
    const int64_t a = left.integer(), b = right.integer();
    int64_t result = 0;
    bool overflows = false;
    if (op == "+") overflows = __builtin_add_overflow(a, b, &result);
    if (op == "-") overflows = __builtin_sub_overflow(a, b, &result);
    if (op == "*") overflows = __builtin_mul_overflow(a, b, &result);
    if (divides && b == -1) {
      overflows = op == "//" && __builtin_sub_overflow(int64_t{0}, a, &result);
    } else if (divides) {
      const int64_t floor = a / b - (a % b != 0 && (a < 0) != (b < 0));
      result = op == "//" ? floor : a - floor * b;
    }
    if (overflows) fail_at(line, fmt::format("'{}' overflows", op));
    return {result};
  }

  Value compute(const Comparison& node, int line) {
    Value left = evaluate(node.first);
    for (const auto& [op, expression] : node.rest) {
      Value right = evaluate(expression);
      if (!holds(op, left, right, line)) return {false};
      left = std::move(right);
    }
    return {true};
  }

  static bool holds(const std::string& op, const Value& left, const Value& right, int line) {
    if (op == "==") return equal(left, right);
    if (op == "!=") return !equal(left, right);
    if (op == "in") return apply_test("in", left, {right}, line);
    if (op == "not in") return !apply_test("in", left, {right}, line);
    if (left.string() && right.string()) return ordered(op, left.string()->compare(*right.string()));
    if (!left.number() || !right.number())
      fail_at(line, fmt::format("{} '{}' {}", type_name(left), op, type_name(right)));
    const double a = left.decimal(), b = right.decimal();
    return ordered(op, a < b ? -1 : a > b ? 1 : 0);
  }
  static bool ordered(const std::string& op, int sign) {
    return op == "<" ? sign < 0 : op == "<=" ? sign <= 0 : op == ">" ? sign > 0 : sign >= 0;
  }

  Value compute(const Conditional& node, int) {
    if (truth(evaluate(node.condition))) return evaluate(node.then);
    return node.otherwise ? evaluate(node.otherwise) : Value{Undefined{"else"}};
  }

  std::vector<Dict> scopes_;
  std::string out_;
  int64_t steps_ = 0;
  int depth_ = 0;
};

}  // namespace

std::string evaluate(const Template& source, const Dict& globals) {
  return Evaluator(globals).render(source);
}

}  // namespace spinfer::jinja

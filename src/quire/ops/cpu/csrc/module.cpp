// The Python face: functions of addresses and sizes. Tensors are checked in Python (ops.py); whatever is used as an
// index is checked here.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "checks.h"
#include "kernels.h"

namespace quire {
namespace {

constexpr const char* kEngineName = "quire.ops.cpu.engine";
constexpr const char* kWeightName = "quire.ops.cpu.weight";
constexpr const char* kPagesName = "quire.ops.cpu.pages";
constexpr const char* kStepName = "quire.ops.cpu.step";
constexpr const char* kProgramName = "quire.ops.cpu.program";
constexpr const char* kStackName = "quire.ops.cpu.stack";

// Below this much work (multiplications, about) the GIL is kept: it would take longer to win it back.
constexpr int64_t kReleaseWork = 2'000'000;

// An operation with all its arguments. Returns a problem, or null; run again, it reads what its addresses hold then.
using Operation = std::function<const char*()>;
using Program = std::vector<Operation>;

struct Engine {
  Pool pool;
  const Kernels& kernels;
  Program* recording = nullptr;
  Engine(int threads, const Kernels& k) : pool(threads), kernels(k) {}
};

template <typename T>
void destroy(PyObject* capsule) {
  delete static_cast<T*>(PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule)));
}

template <typename T>
PyObject* to_capsule(std::unique_ptr<T> value, const char* name) {
  PyObject* capsule = PyCapsule_New(value.get(), name, destroy<T>);
  if (capsule) value.release();
  return capsule;
}

// Reads the arguments of one call in order; remembers whether one was wrong.
class Args {
 public:
  Args(PyObject* const* args, Py_ssize_t count, Py_ssize_t wanted) : args_(args) {
    if (count != wanted) {
      PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", wanted, count);
      bad_ = true;
    }
  }

  int64_t integer() {
    if (bad_) return 0;
    const int64_t value = PyLong_AsLongLong(args_[at_++]);
    if (value == -1 && PyErr_Occurred()) bad_ = true;
    return value;
  }

  float real() {
    if (bad_) return 0.0f;
    const double value = PyFloat_AsDouble(args_[at_++]);
    if (value == -1.0 && PyErr_Occurred()) bad_ = true;
    return static_cast<float>(value);
  }

  template <typename T>
  T* address() {  // 0: null
    if (bad_) return nullptr;
    void* value = PyLong_AsVoidPtr(args_[at_++]);
    if (!value && PyErr_Occurred()) bad_ = true;
    return static_cast<T*>(value);
  }

  template <typename T>
  T* capsule(const char* name) {
    if (bad_) return nullptr;
    void* value = PyCapsule_GetPointer(args_[at_++], name);
    if (!value) bad_ = true;
    return static_cast<T*>(value);
  }

  Engine* engine() { return capsule<Engine>(kEngineName); }
  bool bad() const { return bad_; }

 private:
  PyObject* const* args_;
  Py_ssize_t at_ = 0;
  bool bad_ = false;
};

PyObject* refuse(const char* problem) {
  PyErr_SetString(PyExc_ValueError, problem);
  return nullptr;
}

// Runs ``body``, which returns a problem or null, and notes it when the engine records. ``work``: see kReleaseWork.
template <typename Body>
PyObject* run(Engine& engine, int64_t work, const Body& body) {
  if (engine.recording) engine.recording->push_back(body);
  const char* problem;
  PyThreadState* state = work >= kReleaseWork ? PyEval_SaveThread() : nullptr;
  {
    std::lock_guard<std::mutex> lock(engine.pool.owner());
    problem = body();
  }
  if (state) PyEval_RestoreThread(state);
  if (problem) return refuse(problem);
  Py_RETURN_NONE;
}

// record(engine) -> program: from now on, operations are also noted in it.
PyObject* py_record(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 1);
  Engine* engine = args.engine();
  if (args.bad()) return nullptr;
  auto program = std::make_unique<Program>();
  engine->recording = program.get();
  return to_capsule(std::move(program), kProgramName);
}

// stop(engine): the end of what ``record`` began.
PyObject* py_stop(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 1);
  Engine* engine = args.engine();
  if (args.bad()) return nullptr;
  engine->recording = nullptr;
  Py_RETURN_NONE;
}

// replay(engine, program). The caller keeps everything alive that the operations were given.
PyObject* py_replay(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 2);
  Engine* engine = args.engine();
  const auto* program = args.capsule<Program>(kProgramName);
  if (args.bad()) return nullptr;
  return run(*engine, kReleaseWork, [program]() -> const char* {
    for (const Operation& operation : *program) {
      if (const char* problem = operation()) return problem;
    }
    return nullptr;
  });
}

std::vector<const Kernels*> usable_kernels() {
  std::vector<const Kernels*> found;
  for (const Kernels* kernels :
       {avx512_vnni_kernels(), avx512_kernels(), avx_vnni_kernels(), avx2_kernels(), &portable_kernels()}) {
    if (kernels) found.push_back(kernels);
  }
  return found;
}

// instruction_sets() -> tuple of the names of those the processor has, the best first
PyObject* py_instruction_sets(PyObject*, PyObject* const*, Py_ssize_t) {
  const std::vector<const Kernels*> usable = usable_kernels();
  PyObject* names = PyTuple_New(static_cast<Py_ssize_t>(usable.size()));
  for (size_t i = 0; names && i < usable.size(); ++i) {
    PyObject* name = PyUnicode_FromString(usable[i]->name);
    if (!name) Py_CLEAR(names);
    if (name) PyTuple_SET_ITEM(names, static_cast<Py_ssize_t>(i), name);
  }
  return names;
}

// engine(threads, index in instruction_sets()) -> capsule
PyObject* py_engine(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 2);
  const int64_t threads = args.integer(), index = args.integer();
  if (args.bad()) return nullptr;
  if (threads < 1 || threads > 1024) return refuse("threads must be from 1 to 1024.");
  const std::vector<const Kernels*> usable = usable_kernels();
  if (index < 0 || index >= static_cast<int64_t>(usable.size())) return refuse("No such instruction set.");
  try {
    return to_capsule(std::make_unique<Engine>(static_cast<int>(threads), *usable[index]), kEngineName);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

// engine_name(engine) -> str
PyObject* py_engine_name(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 1);
  const Engine* engine = args.engine();
  return args.bad() ? nullptr : PyUnicode_FromString(engine->kernels.name);
}

// weight(address, n, k, code, group, type, second, zero_type, super, zero, table, order, rounding, scale, rounding_zero,
//        rounding_group, symmetric) -> capsule. The caller keeps the memory of ``address`` and ``order``.
PyObject* py_weight(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 17);
  auto weight = std::make_unique<Weight>();
  weight->data = args.address<uint8_t>();
  weight->n = args.integer();
  weight->k = args.integer();
  weight->code = static_cast<Code>(args.integer());
  weight->group = static_cast<int>(args.integer());
  weight->type = static_cast<Type>(args.integer());
  weight->second = static_cast<Second>(args.integer());
  weight->zero_type = static_cast<Type>(args.integer());
  weight->super = static_cast<int>(args.integer());
  weight->zero = args.real();
  const float* table = args.address<float>();
  weight->inputs.order = args.address<int32_t>();
  weight->inputs.rounding = static_cast<Inputs::Rounding>(args.integer());
  weight->inputs.scale = args.real();
  weight->inputs.zero = args.real();
  weight->inputs.group = args.integer();
  weight->inputs.symmetric = args.integer() != 0;
  if (args.bad()) return nullptr;
  if (weight->group < 1 || weight->group > kMaxGroup) return refuse("A group is too large.");
  std::memset(weight->table, 0, sizeof weight->table);
  if (table) std::memcpy(weight->table, table, sizeof weight->table);
  return to_capsule(std::move(weight), kWeightName);
}

// weight_bytes(weight) -> int
PyObject* py_weight_bytes(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 1);
  const auto* weight = args.capsule<Weight>(kWeightName);
  return args.bad() ? nullptr : PyLong_FromLongLong(weight->bytes());
}

// pack(engine, weight, elements, scale, second, super_scale, super_second)
PyObject* py_pack(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 7);
  Engine* engine = args.engine();
  const auto* weight = args.capsule<Weight>(kWeightName);
  PackSource source;
  source.elements = args.address<uint8_t>();
  source.scale = args.address<uint8_t>();
  source.second = args.address<uint8_t>();
  source.super_scale = args.address<uint8_t>();
  source.super_second = args.address<uint8_t>();
  if (args.bad()) return nullptr;
  return run(*engine, kReleaseWork, [=]() -> const char* {
    if (weight->dense()) {
      pack_dense(engine->pool, *weight, source.elements);
    } else {
      pack_grouped(engine->pool, *weight, source);
    }
    return nullptr;
  });
}

// linear(engine, x, rows, weight, bias, out, stride)
PyObject* py_linear(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 7);
  Engine* engine = args.engine();
  const auto* x = args.address<float>();
  const int64_t rows = args.integer();
  const auto* weight = args.capsule<Weight>(kWeightName);
  const auto* bias = args.address<float>();
  auto* out = args.address<float>();
  const int64_t stride = args.integer();
  if (args.bad()) return nullptr;
  return run(*engine, rows * weight->n * weight->k, [=]() -> const char* {
    engine->kernels.linear(engine->pool, x, rows, *weight, bias, out, stride);
    return nullptr;
  });
}

// embed(engine, weight, ids, count, multiplier, out)
PyObject* py_embed(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 6);
  Engine* engine = args.engine();
  const auto* weight = args.capsule<Weight>(kWeightName);
  const auto* ids = args.address<int64_t>();
  const int64_t rows = args.integer();
  const float multiplier = args.real();
  auto* out = args.address<float>();
  if (args.bad()) return nullptr;
  return run(*engine, rows * weight->k * 8, [=]() -> const char* {
    if (const char* problem = check_ids(*weight, ids, rows)) return problem;
    engine->kernels.embed(engine->pool, *weight, ids, rows, multiplier, out);
    return nullptr;
  });
}

// rms_norm(engine, x, weight, eps, residual, rows, width, out)
PyObject* py_rms_norm(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 8);
  Engine* engine = args.engine();
  const auto* x = args.address<float>();
  const auto* weight = args.address<float>();
  const float eps = args.real();
  auto* residual = args.address<float>();
  const int64_t rows = args.integer(), width = args.integer();
  auto* out = args.address<float>();
  if (args.bad()) return nullptr;
  return run(*engine, rows * width * 4, [=]() -> const char* {
    engine->kernels.rms_norm(engine->pool, x, weight, eps, residual, rows, width, out);
    return nullptr;
  });
}

// gate_up_act(engine, x, rows, width, activation, out)
PyObject* py_gate_up_act(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 6);
  Engine* engine = args.engine();
  const auto* x = args.address<float>();
  const int64_t rows = args.integer(), width = args.integer(), activation = args.integer();
  auto* out = args.address<float>();
  if (args.bad()) return nullptr;
  if (activation < 0 || activation > static_cast<int>(Activation::swiglu_oss)) return refuse("Unknown activation.");
  return run(*engine, rows * width * 8, [=]() -> const char* {
    engine->kernels.gate_up_act(engine->pool, x, rows, width, static_cast<Activation>(activation), out);
    return nullptr;
  });
}

// layer_norm(engine, x, weight, bias, eps, residual, rows, width, out)
PyObject* py_layer_norm(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 9);
  Engine* engine = args.engine();
  const auto* x = args.address<float>();
  const auto* weight = args.address<float>();
  const auto* bias = args.address<float>();
  const float eps = args.real();
  auto* residual = args.address<float>();
  const int64_t rows = args.integer(), width = args.integer();
  auto* out = args.address<float>();
  if (args.bad()) return nullptr;
  return run(*engine, rows * width * 6, [=]() -> const char* {
    engine->kernels.layer_norm(engine->pool, x, weight, bias, eps, residual, rows, width, out);
    return nullptr;
  });
}

// norm_columns(engine, x, rows, stride, parts, width, weight, bias, eps, centered)
PyObject* py_norm_columns(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 10);
  Engine* engine = args.engine();
  auto* x = args.address<float>();
  const int64_t rows = args.integer(), stride = args.integer(), parts = args.integer(), width = args.integer();
  const auto* weight = args.address<float>();
  const auto* bias = args.address<float>();
  const float eps = args.real();
  const bool centered = args.integer() != 0;
  if (args.bad()) return nullptr;
  return run(*engine, rows * parts * width * 6, [=]() -> const char* {
    engine->kernels.norm_columns(engine->pool, x, rows, stride, parts, width, weight, bias, eps, centered);
    return nullptr;
  });
}

// add_rows(engine, x, table, table_rows, index, rows, width, out): without an index, row by row.
PyObject* py_add_rows(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 8);
  Engine* engine = args.engine();
  const auto* x = args.address<float>();
  const auto* table = args.address<float>();
  const int64_t table_rows = args.integer();
  const auto* index = args.address<int32_t>();
  const int64_t rows = args.integer(), width = args.integer();
  auto* out = args.address<float>();
  if (args.bad()) return nullptr;
  return run(*engine, rows * width * 3, [=]() -> const char* {
    for (int64_t row = 0; index && row < rows; ++row) {
      if (index[row] < 0 || index[row] >= table_rows) return "A position is out of range.";
    }
    engine->kernels.add_rows(engine->pool, x, table, index, rows, width, out);
    return nullptr;
  });
}

// activate(engine, x, rows, width, activation, out)
PyObject* py_activate(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 6);
  Engine* engine = args.engine();
  const auto* x = args.address<float>();
  const int64_t rows = args.integer(), width = args.integer(), activation = args.integer();
  auto* out = args.address<float>();
  if (args.bad()) return nullptr;
  if (activation < 0 || activation > static_cast<int>(Activation::relu2)) return refuse("Unknown activation.");
  return run(*engine, rows * width * 8, [=]() -> const char* {
    engine->kernels.activate(engine->pool, x, rows, width, static_cast<Activation>(activation), out);
    return nullptr;
  });
}

// softcap(engine, x, count, cap)
PyObject* py_softcap(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 4);
  Engine* engine = args.engine();
  auto* x = args.address<float>();
  const int64_t values = args.integer();
  const float cap = args.real();
  if (args.bad()) return nullptr;
  return run(*engine, values * 8, [=]() -> const char* {
    engine->kernels.softcap(engine->pool, x, values, cap);
    return nullptr;
  });
}

// pages(k, v, type, pages, kv_heads, head_dim, page_size) -> capsule. The caller keeps the memory.
PyObject* py_pages(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 7);
  auto pages = std::make_unique<PageTensors>();
  pages->k = args.address<void>();
  pages->v = args.address<void>();
  pages->type = static_cast<Type>(args.integer());
  pages->pages = args.integer();
  pages->kv_heads = args.integer();
  pages->head_dim = args.integer();
  pages->page_size = args.integer();
  return args.bad() ? nullptr : to_capsule(std::move(pages), kPagesName);
}

// step(tokens, sequences, positions, slots, query_start, context_len, block_table, stride, width) -> capsule
PyObject* py_step(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 9);
  auto step = std::make_unique<Step>();
  step->tokens = args.integer();
  step->sequences = args.integer();
  step->positions = args.address<int32_t>();
  step->slots = args.address<int64_t>();
  step->query_start = args.address<int32_t>();
  step->context_len = args.address<int32_t>();
  step->block_table = args.address<int32_t>();
  step->table_stride = args.integer();
  step->table_width = args.integer();
  return args.bad() ? nullptr : to_capsule(std::move(step), kStepName);
}

// store(engine, pages, step, qkv, heads, q_norm, k_norm, eps, cos_sin, cos_sin_rows, rotary_dim, interleaved)
PyObject* py_store(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 12);
  Engine* engine = args.engine();
  const auto* pages = args.capsule<PageTensors>(kPagesName);
  const auto* step = args.capsule<Step>(kStepName);
  StoreArgs store;
  store.qkv = args.address<float>();
  store.heads = args.integer();
  store.q_norm = args.address<float>();
  store.k_norm = args.address<float>();
  store.eps = args.real();
  store.cos_sin = args.address<float>();
  store.cos_sin_rows = args.integer();
  store.rotary_dim = args.integer();
  store.interleaved = args.integer() != 0;
  if (args.bad()) return nullptr;
  const int64_t width = (store.heads + 2 * pages->kv_heads) * pages->head_dim;
  return run(*engine, step->tokens * width * 8, [=]() -> const char* {
    if (const char* problem = check_store(store, *pages, *step)) return problem;
    engine->kernels.store(engine->pool, store, *pages, *step);
    return nullptr;
  });
}

// attention(engine, pages, step, q, q_stride, out, heads, scale, window, softcap, sinks, slopes)
PyObject* py_attention(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 12);
  Engine* engine = args.engine();
  const auto* pages = args.capsule<PageTensors>(kPagesName);
  const auto* step = args.capsule<Step>(kStepName);
  AttentionArgs attention;
  attention.q = args.address<float>();
  attention.q_stride = args.integer();
  attention.out = args.address<float>();
  attention.heads = args.integer();
  attention.scale = args.real();
  attention.window = args.integer();
  attention.softcap = args.real();
  attention.sinks = args.address<float>();
  attention.slopes = args.address<float>();
  if (args.bad()) return nullptr;
  int64_t context = 0;
  for (int64_t s = 0; s < step->sequences; ++s) {
    context += int64_t{step->context_len[s]} * (step->query_start[s + 1] - step->query_start[s]);
  }
  return run(*engine, context * attention.heads * pages->head_dim, [=]() -> const char* {
    if (const char* problem = check_attention(attention, *pages, *step)) return problem;
    engine->kernels.attention(engine->pool, attention, *pages, *step);
    return nullptr;
  });
}

// sample(engine, logits, rows, vocab, temperature, top_k, top_p, min_p, seed, position, out)
PyObject* py_sample(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 11);
  Engine* engine = args.engine();
  SampleArgs sample;
  sample.logits = args.address<float>();
  sample.rows = args.integer();
  sample.vocab = args.integer();
  sample.temperature = args.address<float>();
  sample.top_k = args.address<int32_t>();
  sample.top_p = args.address<float>();
  sample.min_p = args.address<float>();
  sample.seed = args.address<int64_t>();
  sample.position = args.address<int64_t>();
  sample.out = args.address<int64_t>();
  if (args.bad()) return nullptr;
  return run(*engine, sample.rows * sample.vocab * 8, [=]() -> const char* {
    engine->kernels.sample(engine->pool, sample);
    return nullptr;
  });
}

// stack(weights) -> capsule, of a tuple of weights of one shape; they must outlive it.
PyObject* py_stack(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  if (count != 1 || !PyTuple_Check(raw[0])) return refuse("A stack is made from a tuple of weights.");
  auto stack = std::make_unique<std::vector<Weight>>();
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(raw[0]); ++i) {
    const auto* weight = static_cast<const Weight*>(PyCapsule_GetPointer(PyTuple_GET_ITEM(raw[0], i), kWeightName));
    if (!weight) return nullptr;
    stack->push_back(*weight);
  }
  return to_capsule(std::move(stack), kStackName);
}

// route(engine, logits, tokens, experts, bias, top_k, scoring, renormalize, scale, groups, top_groups, group_score,
//       jitter, rows, offsets, places, weights)
PyObject* py_route(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 17);
  Engine* engine = args.engine();
  RouteArgs route;
  route.logits = args.address<float>();
  route.tokens = args.integer();
  route.experts = args.integer();
  route.bias = args.address<float>();
  route.top_k = args.integer();
  route.scoring = static_cast<Scoring>(args.integer());
  route.renormalize = args.integer() != 0;
  route.scale = args.real();
  route.groups = args.integer();
  route.top_groups = args.integer();
  route.group_score = args.integer();
  route.jitter = args.real();
  route.rows = args.address<int32_t>();
  route.offsets = args.address<int32_t>();
  route.places = args.address<int32_t>();
  route.weights = args.address<float>();
  if (args.bad()) return nullptr;
  if (const char* problem = check_route(route)) return refuse(problem);
  return run(*engine, route.tokens * route.experts * 16, [=]() -> const char* {
    engine->kernels.route(engine->pool, route);
    return nullptr;
  });
}

// grouped_linear(engine, x, tokens, rows, row_count, stack, offsets, bias, out)
PyObject* py_grouped_linear(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 9);
  Engine* engine = args.engine();
  GroupedArgs grouped;
  grouped.x = args.address<float>();
  grouped.tokens = args.integer();
  grouped.rows = args.address<int32_t>();
  grouped.row_count = args.integer();
  const auto* stack = args.capsule<std::vector<Weight>>(kStackName);
  grouped.offsets = args.address<int32_t>();
  grouped.bias = args.address<float>();
  grouped.out = args.address<float>();
  if (args.bad()) return nullptr;
  grouped.stack = stack->data();
  grouped.count = static_cast<int64_t>(stack->size());
  return run(*engine, grouped.row_count * grouped.stack->n * grouped.stack->k, [=]() -> const char* {
    if (const char* problem = check_grouped(grouped)) return problem;
    engine->kernels.grouped_linear(engine->pool, grouped);
    return nullptr;
  });
}

// combine(engine, y, row_count, width, places, weights, tokens, top_k, shared, gate, out)
PyObject* py_combine(PyObject*, PyObject* const* raw, Py_ssize_t count) {
  Args args(raw, count, 11);
  Engine* engine = args.engine();
  CombineArgs combine;
  combine.y = args.address<float>();
  combine.row_count = args.integer();
  combine.width = args.integer();
  combine.places = args.address<int32_t>();
  combine.weights = args.address<float>();
  combine.tokens = args.integer();
  combine.top_k = args.integer();
  combine.shared = args.address<float>();
  combine.gate = args.address<float>();
  combine.out = args.address<float>();
  if (args.bad()) return nullptr;
  return run(*engine, combine.row_count * combine.width * 4, [=]() -> const char* {
    if (const char* problem = check_combine(combine)) return problem;
    engine->kernels.combine(engine->pool, combine);
    return nullptr;
  });
}

#define QUIRE_METHOD(name) {#name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(py_##name)), METH_FASTCALL, nullptr}

PyMethodDef kMethods[] = {
    QUIRE_METHOD(instruction_sets), QUIRE_METHOD(engine), QUIRE_METHOD(engine_name), QUIRE_METHOD(weight), QUIRE_METHOD(weight_bytes), QUIRE_METHOD(pack),
    QUIRE_METHOD(linear), QUIRE_METHOD(embed),       QUIRE_METHOD(rms_norm), QUIRE_METHOD(gate_up_act),
    QUIRE_METHOD(record), QUIRE_METHOD(stop),        QUIRE_METHOD(replay),
    QUIRE_METHOD(pages),  QUIRE_METHOD(step),        QUIRE_METHOD(store),  QUIRE_METHOD(attention),  QUIRE_METHOD(sample),
    QUIRE_METHOD(stack),  QUIRE_METHOD(route),       QUIRE_METHOD(grouped_linear), QUIRE_METHOD(combine),
    QUIRE_METHOD(layer_norm), QUIRE_METHOD(norm_columns), QUIRE_METHOD(add_rows), QUIRE_METHOD(activate),
    QUIRE_METHOD(softcap),
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef kModule = {PyModuleDef_HEAD_INIT, "quire.ops.cpu._kernels", "Kernels of the CPU ops; see ops.py.", -1, kMethods,
                       nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace quire

PyMODINIT_FUNC PyInit__kernels() { return PyModule_Create(&quire::kModule); }

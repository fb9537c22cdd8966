"""Every command does its job on the bundled demo models and answers with the JSON fields scripts rely on."""

import array
import json
import math
import os
import re
import struct

import program
from program import DEMOS, LLAMA, OPT, ROOT, VALID_TEXT

PROMPT = "The old man looked at her and said,"


def tca_bme_bytes(m, k, nonzeros):
    """4-byte offset per 64x64 group tile and one more, 8 bytes per 8x8 bitmap tile, 2 bytes per value."""
    groups = -(-m // 64) * -(-k // 64)
    return 4 * (groups + 1) + 8 * 64 * groups + 2 * nonzeros


def write_safetensors(path, tensors):
    """tensors: name -> (shape, fp16 bytes)."""
    header, data = {}, b""
    for name, (shape, values) in tensors.items():
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


class Generate(program.ProgramTest):
    def test_plain_stdout_is_the_continuation(self):
        out = self.ok("generate", "-m", LLAMA, "-p", PROMPT, "-n", 20, "--temp", 0)
        document = self.json("generate", "-m", LLAMA, "-p", PROMPT, "-n", 20, "--temp", 0)
        self.assertEqual(out.decode(), document["outputs"][0]["text"] + "\n")
        self.assertNotIn(PROMPT, out.decode())

    def test_json_fields(self):
        document = self.json("generate", "-m", OPT, "-p", PROMPT, "-n", 12, "--seed", 3, "--logprobs", 4)
        (output,) = document["outputs"]
        self.assertEqual(output["prompt_ids"][0], 2)
        self.assertEqual(len(output["output_ids"]), 12)
        self.assertEqual(output["finish_reason"], "length")
        self.assertGreater(len(output["text"]), 5)
        self.assertEqual(len(output["logprobs"]), 12)
        for token in output["logprobs"]:
            self.assertEqual(len(token["top"]), 4)
            self.assertLessEqual(token["logprob"], token["top"][0]["logprob"] + 1e-6)
            self.assertLess(sum(math.exp(t["logprob"]) for t in token["top"]), 1.001)
        for field in ("ttft_ms", "tpot_ms", "tokens_per_s"):
            self.assertGreater(document["timings"][field], 0)
        memory = document["memory"]
        for field in ("weights_dense_bytes", "weights_bytes", "kv_bytes", "peak_bytes"):
            self.assertGreater(memory[field], 0)
        self.assertLess(memory["weights_bytes"], memory["weights_dense_bytes"])
        self.assertGreaterEqual(memory["peak_bytes"], memory["weights_bytes"] + memory["kv_bytes"])

    def test_one_token_has_no_time_per_token(self):
        """Figures that need a second token are null or n/a, not 0."""
        arguments = ("generate", "-m", LLAMA, "-p", PROMPT, "-n", 1, "--baseline", "dense")
        document = self.json(*arguments)
        self.assertGreater(document["timings"]["ttft_ms"], 0)
        for value in (document["timings"]["tpot_ms"], document["timings"]["gbps"], document["timings"]["floor_pct"],
                      document["speedup"]):
            self.assertIsNone(value)
        table = self.run_program(*arguments).stderr.decode()
        self.assertRegex(table, r"time per output token +n/a +n/a *\n")

    def test_spellings_of_tp(self):
        for spelling in (("-tp", 2), ("-tp2",), ("-tp=2",), ("--tp=2",), ("--tensor-parallel", 2)):
            self.assertEqual(self.json("score", "-m", LLAMA, "--tokens", "1,2", *spelling)["ranks"], 2, spelling)

    def test_values_that_begin_with_tp(self):
        """Values are no flags: only -tp in the place of one is."""
        self.ok("pack", "-m", LLAMA, "-o", "-tp2")
        self.assertEqual([path.name for path in self.tmp.iterdir()], ["-tp2"])
        self.assertEqual(self.json("score", "-m", "-tp2", "--tokens", "1,2")["ranks"], 1)
        self.assertEqual(self.json("score", "-m", "-tp2", "-tp2", "--tokens", "1,2")["ranks"], 2)
        self.file("-tpfile", "Alice")
        by_file, by_flag = (self.json("generate", "-m", LLAMA, *prompt, "-n", 1)["outputs"][0]["prompt_ids"]
                            for prompt in (("-f", "-tpfile"), ("-p", "Alice")))
        self.assertEqual(by_file, by_flag)

    def test_seed_decides_and_report_changes_nothing(self):
        arguments = ("generate", "-m", LLAMA, "-p", PROMPT, "-n", 40)
        first = self.ok(*arguments, "--seed", 7)
        self.assertEqual(first, self.ok(*arguments, "--seed", 7))
        self.assertEqual(first, self.ok(*arguments, "--seed", 7, "--report"))
        self.assertNotEqual(first, self.ok(*arguments, "--seed", 8))
        self.assertEqual(self.ok(*arguments), self.ok(*arguments, "--report"), "without --seed too")

    def test_prompt_from_file_and_stdin_verbatim(self):
        text = "  Zwölf Boxkämpfer\n\tjagen 猫 🙂\n".encode()
        path = self.file("prompt.txt", text)
        by_file = self.json("generate", "-m", LLAMA, "-f", path, "-n", 4, "--temp", 0)
        by_stdin = self.json("generate", "-m", LLAMA, "-f", "-", "-n", 4, "--temp", 0, stdin=text)
        by_flag = self.json("generate", "-m", LLAMA, "-p", text.decode(), "-n", 4, "--temp", 0)
        self.assertEqual(by_file["outputs"], by_stdin["outputs"])
        self.assertEqual(by_file["outputs"], by_flag["outputs"])
        ids = self.ok("tokenize", "-m", LLAMA, stdin=text).split()
        self.assertEqual(by_file["outputs"][0]["prompt_ids"], [int(i) for i in ids])

    def test_prompts_that_look_like_something_else(self):
        for text in ("-tp", "--seed", "-", "--", "[a, b]", '"quoted"', "%x\\n{}", "$HOME", " a  b "):
            (output,) = self.json("generate", "-m", OPT, "-p", text, "-n", 1)["outputs"]
            ids = self.ok("tokenize", "-m", OPT, stdin=text.encode()).split()
            self.assertEqual(output["prompt_ids"], [int(i) for i in ids], text)

    def test_empty_prompt_is_bos_only(self):
        for directory, bos in ((LLAMA, 1), (OPT, 2)):
            (output,) = self.json("generate", "-m", directory, "-p", "", "-n", 3)["outputs"]
            self.assertEqual(output["prompt_ids"], [bos])
            self.assertEqual(len(output["output_ids"]), 3)

    def test_prompts_file_equals_single_runs(self):
        prompts = [PROMPT, "Alice", "ROMEO:\n", ""]
        lines = "".join(json.dumps({"prompt": p, "n": 6 + i}) + "\n" for i, p in enumerate(prompts))
        path = self.file("prompts.jsonl", lines + "\n")
        outputs = self.json("generate", "-m", OPT, "--prompts", path, "--temp", 0)["outputs"]
        self.assertEqual(len(outputs), len(prompts))
        for i, prompt in enumerate(prompts):
            (single,) = self.json("generate", "-m", OPT, "-p", prompt, "-n", 6 + i, "--temp", 0)["outputs"]
            self.assertEqual(outputs[i], single)

    def test_stop_strings_end_the_text_before_them(self):
        arguments = ("generate", "-m", LLAMA, "-p", PROMPT, "-n", 60, "--temp", 0)
        (whole,) = self.json(*arguments)["outputs"]
        stop = whole["text"][20:24]
        (stopped,) = self.json(*arguments, "--stop", "never written", "--stop", stop)["outputs"]
        self.assertEqual(stopped["text"], whole["text"][: whole["text"].index(stop)])
        self.assertEqual(stopped["finish_reason"], "stop")

    def test_baseline_prints_both_columns(self):
        document = self.json("generate", "-m", LLAMA, "-p", PROMPT, "-n", 8, "--baseline", "dense")
        self.assertGreater(document["speedup"], 0)
        dense = document["baseline"]["memory"]
        self.assertEqual(dense["sparse_linears"], 0)
        self.assertEqual(dense["weights_bytes"], dense["weights_dense_bytes"])
        done = self.run_program("generate", "-m", LLAMA, "-p", PROMPT, "-n", 8, "--baseline", "dense")
        self.assertEqual(done.returncode, 0)
        table = done.stderr.decode()
        for label in ("sparse", "dense", "parameters", "KV cache", "workspace", "peak", "time to first token",
                      "time per output token", "throughput"):
            self.assertIn(label, table)
        self.assertNotIn("KV cache", done.stdout.decode(), "the table is no result")


class Score(program.ProgramTest):
    def test_files_flags_and_separators_agree(self):
        path = self.file("ids.txt", "1 300 301, 302\n\n1,5\n")
        both = self.json("score", "-m", LLAMA, "--tokens-file", path, "--top", 3)
        self.assertEqual(both["ranks"], 1)
        self.assertEqual([len(s["token_logprobs"]) for s in both["sequences"]], [3, 1])
        for sequence in both["sequences"]:
            self.assertEqual(len(sequence["last_top"]), 3)
            tops = [t["logprob"] for t in sequence["last_top"]]
            self.assertEqual(tops, sorted(tops, reverse=True))
        one = self.json("score", "-m", LLAMA, "--tokens", "1,300,301,302", "--top", 3)
        for a, b in zip(one["sequences"][0]["token_logprobs"], both["sequences"][0]["token_logprobs"]):
            self.assertAlmostEqual(a, b, delta=2e-3)
        self.assertIn(b"sum", self.ok("score", "-m", LLAMA, "--tokens", "1 300"))

    def test_works_without_tokenizer_files(self):
        directory = self.need_assets("hf_goldens/qwen2-tied")
        self.assertEqual(len(self.json("score", "-m", directory, "--tokens", "1,2")["sequences"]), 1)


class Tokenize(program.ProgramTest):
    TEXTS = ["", " ", "Hello", "  two  spaces ", "trailing newline\n", "\n\n\t", "naïve Ελλάδα 中文 🙂🇩🇪",
             "é vs e\u0301", "a\x00b", VALID_TEXT.read_text(encoding="utf-8")[:3000]]

    def test_round_trip(self):
        for directory in DEMOS.values():
            for text in self.TEXTS:
                ids = self.ok("tokenize", "-m", directory, stdin=text.encode())
                self.assertRegex(ids.decode(), r"\A\d+( \d+)*\n\Z")
                back = self.ok("detokenize", "-m", directory, stdin=ids)
                self.assertEqual(back.decode(), text + "\n")
                commas = self.ok("detokenize", "-m", directory, stdin=ids.replace(b" ", b","))
                self.assertEqual(commas, back)

    def test_no_bos(self):
        for directory in DEMOS.values():
            ids = self.ok("tokenize", "-m", directory, stdin=b"Hello").split()
            self.assertEqual(self.ok("tokenize", "-m", directory, "--no-bos", stdin=b"Hello").split(), ids[1:])
            document = self.json("tokenize", "-m", directory, stdin=b"Hello")
            self.assertEqual(document, {"tokens": [int(i) for i in ids], "count": len(ids)})

    def test_needs_no_weights(self):
        for name in ("config.json", "tokenizer.model"):
            self.file("bare/" + name, (LLAMA / name).read_bytes())
        self.assertEqual(self.ok("tokenize", "-m", "bare", stdin=b"Hello"), self.ok("tokenize", "-m", LLAMA, stdin=b"Hello"))


class Perplexity(program.ProgramTest):
    def test_windows_cover_the_text(self):
        text = VALID_TEXT.read_bytes()[:2000]
        path = self.file("text.txt", text)
        count = len(self.ok("tokenize", "-m", OPT, "--no-bos", stdin=text).split())
        plain = self.json("perplexity", "-m", OPT, "-f", path, "--ctx", 64)
        self.assertEqual(plain["tokens"], count)
        self.assertAlmostEqual(plain["ppl"], math.exp(plain["mean_nll"]), delta=1e-6 * plain["ppl"])
        self.assertGreater(plain["ppl_error"], 0)
        one = self.json("perplexity", "-m", OPT, "--tokens-file", self.file("ids.txt", "7"))
        self.assertEqual((one["tokens"], one["ppl_error"]), (1, None), "one token has no spread")
        self.assertIn(b"+- n/a", self.ok("perplexity", "-m", OPT, "--tokens-file", "ids.txt"))
        strided = self.json("perplexity", "-m", OPT, "-f", "-", "--ctx", 64, "--stride", 16, stdin=text)
        self.assertEqual(strided["tokens"], count)
        self.assertLess(strided["mean_nll"], plain["mean_nll"], "more context predicts better")

    def test_a_model_of_one_token_is_refused(self):
        for convention in ("bos", "wanda"):
            self.refused(1, ["perplexity", "-m", LLAMA, "-f", VALID_TEXT, "--max-model-len", 1, "--convention", convention],
                         says="no token has a context")

    def test_convention_of_the_papers(self):
        """Whole windows of BOS once and the text, all but the first token of each scored."""
        text = VALID_TEXT.read_bytes()[:2000]
        ids = self.ok("tokenize", "-m", OPT, stdin=text).split()
        papers = self.json("perplexity", "-m", OPT, "-f", "-", "--ctx", 64, "--convention", "wanda", stdin=text)
        windows = len(ids) // 64
        self.assertEqual((papers["windows"], papers["tokens"]), (windows, 63 * windows))
        lines = "\n".join(b",".join(ids[64 * i:64 * (i + 1)]).decode() for i in range(windows))
        scores = self.json("score", "-m", OPT, "--tokens-file", self.file("windows.txt", lines))
        logprobs = sum((s["token_logprobs"] for s in scores["sequences"]), [])
        self.assertAlmostEqual(papers["mean_nll"], -sum(logprobs) / len(logprobs), delta=1e-3)

    def test_compare(self):
        path = self.file("text.txt", VALID_TEXT.read_bytes()[:1500])
        same = self.json("perplexity", "-m", LLAMA, "-f", path, "--ctx", 100, "--compare", LLAMA)
        self.assertEqual(same["top1_agreement"], 1)
        self.assertAlmostEqual(same["kl_divergence"], 0, delta=1e-9)
        self.assertAlmostEqual(same["delta_ppl"], 0, delta=1e-9)
        self.assertAlmostEqual(same["rms_delta_p"], 0, delta=1e-9)
        self.ok("prune", "-m", LLAMA, "-o", "pruned", "--sparsity", 0.75)
        worse = self.json("perplexity", "-m", "pruned", "-f", path, "--ctx", 100, "--compare", LLAMA)
        alone = self.json("perplexity", "-m", "pruned", "-f", path, "--ctx", 100)
        self.assertAlmostEqual(worse["ppl"], alone["ppl"], delta=1e-3 * alone["ppl"])
        self.assertAlmostEqual(worse["reference_ppl"], same["ppl"], delta=1e-3 * same["ppl"])
        self.assertAlmostEqual(worse["delta_ppl"], worse["ppl"] - worse["reference_ppl"], delta=1e-6)
        self.assertGreater(worse["delta_ppl"], 1)
        self.assertGreater(worse["kl_divergence"], 0.05)
        self.assertLess(worse["top1_agreement"], 0.98)
        self.assertGreater(worse["top1_agreement"], 0.05)
        self.assertIn(b"KL", self.ok("perplexity", "-m", "pruned", "-f", path, "--ctx", 100, "--compare", LLAMA))


class Inspect(program.ProgramTest):
    def test_bytes_equal_the_formula(self):
        for directory, parameters in ((LLAMA, 4656384), (OPT, 4607232)):
            document = self.json("inspect", "-m", directory)
            self.assertEqual(document["parameters"], parameters)
            for linear in document["linears"]:
                m, k = linear["m"], linear["k"]
                nonzeros = round((1 - linear["sparsity"]) * m * k)
                self.assertEqual(linear["dense_bytes"], 2 * m * k)
                self.assertEqual(linear["packed_bytes"], tca_bme_bytes(m, k, nonzeros))
                self.assertAlmostEqual(linear["sparsity"], 0.5, delta=0.01)
            total = document["total"]
            for field in ("dense_bytes", "packed_bytes"):
                self.assertEqual(total[field], sum(l[field] for l in document["linears"]))
            self.assertAlmostEqual(total["sparsity"], 0.5, delta=0.01)
        self.assertEqual(self.json("inspect", "-m", LLAMA)["architecture"], "LlamaForCausalLM")

    def test_unpruned_linears_stay_dense(self):
        directory = self.need_assets("models/stories260K-hf")
        for linear in self.json("inspect", "-m", directory)["linears"]:
            self.assertEqual(linear["packed_bytes"], linear["dense_bytes"])
            self.assertEqual(linear["dense_reason"], "0.0 % zeros, packed from 30 % on")
        self.assertIn(b"dense: 0.0 % zeros", self.ok("inspect", "-m", directory))

    def test_layers(self):
        document = self.json("inspect", "-m", LLAMA)
        self.assertEqual([x["layer"] for x in document["layers"]], list(range(6)))
        for field in ("dense_bytes", "packed_bytes"):
            self.assertEqual(sum(x[field] for x in document["layers"]), document["total"][field])
        for layer in document["layers"]:
            self.assertEqual((layer["linears"], layer["packed_linears"]), (7, 7))
        self.assertFalse(any("dense_reason" in linear for linear in document["linears"]))

    def test_plan_of_a_config(self):
        config = ROOT / "configs" / "models" / "opt-13b.json"
        plan = self.json("inspect", "--config", config, "--sparsity", 0.6, "--plan", "-tp", 2, "--gpu-memory",
                         80 << 30)["plan"]
        self.assertEqual(plan["tensor_parallel"], 2)
        sparse, dense = plan["sparse"], plan["dense"]
        # 13e9 parameters, half on each rank: 13 GB dense; TCA-BME at 60 %: 0.4 + 1/16 of that.
        self.assertAlmostEqual(dense["weights_bytes"] / 13e9, 1, delta=0.06)
        self.assertAlmostEqual(sparse["weights_bytes"] / dense["weights_bytes"], 0.4625, delta=0.03)
        self.assertEqual(sparse["kv_bytes_per_token"], 2 * 40 * 20 * 128 * 2)
        for column in (sparse, dense):
            self.assertTrue(column["fits"])
            self.assertEqual(column["total_bytes"],
                             column["weights_bytes"] + column["layout_bytes"] + column["workspace_bytes"] +
                             column["overhead_bytes"] + column["kv_bytes"])
        self.assertGreater(sparse["max_kv_tokens"], dense["max_kv_tokens"])
        small = self.json("inspect", "--config", config, "--sparsity", 0.6, "--plan", "--gpu-memory", 24 << 30)["plan"]
        self.assertTrue(small["sparse"]["fits"])
        self.assertFalse(small["dense"]["fits"])
        self.assertIn("weights", small["dense"]["reason"])
        text = self.ok("inspect", "--config", config, "--plan").decode()
        for word in ("weights", "KV", "workspace", "tokens"):
            self.assertIn(word, text)

    def test_plan_in_units_for_people(self):
        """What adds up to the total has its unit, and a refusal no raw bytes."""
        config = ROOT / "configs" / "models"
        text = self.ok("inspect", "--config", config / "opt-125m.json", "--sparsity", 0.9, "--plan", "--gpu-memory", 8 << 30,
                       "--kv-cache-memory", 1 << 28, "--max-num-batched-tokens", 512).decode()
        rows = {name: cells for name, *cells in re.findall(r"^  (\S.*?) +([\d.]+) MB +([\d.]+) (?:MB|B)$", text, re.MULTILINE)}
        self.assertEqual(list(rows), ["weights", "their device layout", "workspace", "CUDA, cuBLAS, scratch", "KV cache", "total"], text)
        for column in (0, 1):
            *parts, total = (float(cells[column]) for cells in rows.values())
            self.assertAlmostEqual(sum(parts), total, delta=0.04)
        text = self.ok("inspect", "--config", config / "opt-13b.json", "--plan", "--gpu-memory", 24 << 30).decode()
        self.assertRegex(text, r"dense does not fit: .*[\d.]+ GB of weights")
        self.assertNotRegex(text, r"\d{6}")

    def test_plan_of_a_directory(self):
        document = self.json("inspect", "-m", LLAMA, "--plan", "--max-num-seqs", 4, "--max-model-len", 128)
        self.assertTrue(document["plan"]["sparse"]["fits"])
        self.assertEqual(document["plan"]["sparse"]["kv_bytes_per_token"], 2 * 6 * 2 * 64 * 2)
        self.assertGreater(len(document["linears"]), 0)

    def test_plan_of_unequal_layers_is_what_loading_takes(self):
        self.ok("pack", "-m", LLAMA, "-o", "full", "--dense-output")
        path = self.tmp / "full" / "model.safetensors"
        data = path.read_bytes()
        header = 8 + struct.unpack("<Q", data[:8])[0]
        weights = array.array("H", data[header:])
        path.write_bytes(data[:header] + array.array("H", (h or 0x1000 for h in weights)).tobytes())  # no zeros left
        for name, layers in (("half", "0,0,0,0,0.8,0.8"), ("around", "0.29,0.29,0.29,0.33,0.33,0.33")):
            self.ok("prune", "-m", "full", "-o", name, "--layer-sparsity", layers)
            plan = self.json("inspect", "-m", name, "--plan")["plan"]
            memory = self.json("generate", "-m", name, "-p", "a", "-n", 1)["memory"]
            self.assertAlmostEqual(plan["sparse"]["weights_bytes"] / memory["weights_bytes"], 1, delta=0.001)

    def test_plan_is_what_loading_takes(self):
        for directory in DEMOS.values():
            plan = self.json("inspect", "-m", directory, "--plan")["plan"]
            memory = self.json("generate", "-m", directory, "-p", "a", "-n", 1)["memory"]
            self.assertEqual(plan["sparse"]["weights_bytes"], memory["weights_bytes"])
            self.assertEqual(plan["dense"]["weights_bytes"], memory["weights_dense_bytes"])


class PackAndPrune(program.ProgramTest):
    def logprobs(self, directory):
        path = self.file("ids.txt", "1 300 301 302 20 30 40\n1 77 78\n")
        return [s["token_logprobs"] for s in self.json("score", "-m", directory, "--tokens-file", path)["sequences"]]

    def test_packed_and_dense_output_have_the_same_logits(self):
        for directory in DEMOS.values():
            name = directory.name
            common = ("prune", "-m", directory, "--sparsity", 0.6, "-o")
            packed = self.json(*common, f"{name}-packed")
            self.ok(*common, f"{name}-dense", "--dense-output")
            self.assertAlmostEqual(packed["sparsity"], 0.6, delta=0.01)
            self.assertLess(packed["packed_bytes"], 0.5 * packed["dense_bytes"])
            self.ok("pack", "-m", f"{name}-dense", "-o", f"{name}-repacked")
            self.assertEqual(self.json("inspect", "-m", f"{name}-packed")["linears"],
                             self.json("inspect", "-m", f"{name}-repacked")["linears"])
            reference = self.logprobs(f"{name}-packed")
            self.assertEqual(reference, self.logprobs(f"{name}-repacked"))
            for a, b in zip(sum(reference, []), sum(self.logprobs(f"{name}-dense"), [])):
                self.assertAlmostEqual(a, b, delta=0.01)

    def test_scopes(self):
        for scope in ("row", "layer"):
            document = self.json("prune", "-m", OPT, "-o", scope, "--sparsity", 0.7, "--scope", scope, "--method", "magnitude")
            self.assertAlmostEqual(document["sparsity"], 0.7, delta=0.01)
        self.assertNotEqual(self.logprobs("row"), self.logprobs("layer"))

    def test_extremes(self):
        self.assertEqual(self.json("prune", "-m", OPT, "-o", "all", "--sparsity", 1)["sparsity"], 1)
        self.assertEqual(len(self.logprobs("all")), 2)
        none = self.json("prune", "-m", OPT, "-o", "none", "--sparsity", 0)
        self.assertAlmostEqual(none["sparsity"], 0.5, delta=0.01)  # the demo's own zeros

    def test_output_is_where_the_system_says(self):
        (self.tmp / "elsewhere" / "deep").mkdir(parents=True)
        (self.tmp / "link").symlink_to("elsewhere/deep")
        (self.tmp / "empty").mkdir()
        self.refused(1, ["pack", "-m", OPT, "-o", "none/../out"], says="none/..: no such directory")
        self.ok("pack", "-m", OPT, "-o", "link/../out")
        self.assertTrue((self.tmp / "elsewhere" / "out" / "config.json").exists())
        self.ok("pack", "-m", OPT, "-o", "empty/.")
        self.assertTrue((self.tmp / "empty" / "config.json").exists())
        self.assertEqual(sorted(os.listdir(self.tmp)), ["elsewhere", "empty", "link"])

    def test_min_sparsity(self):
        """Holds for linears that are packed already as for others: the demo's have 50 % zeros."""
        document = self.json("pack", "-m", OPT, "-o", "kept")
        self.assertEqual(document["packed_linears"], document["linears"])
        document = self.json("pack", "-m", OPT, "-o", "dense", "--min-sparsity", 0.7)
        self.assertEqual((document["packed_linears"], document["packed_bytes"]), (0, document["dense_bytes"]))
        for a, b in zip(sum(self.logprobs("kept"), []), sum(self.logprobs("dense"), [])):
            self.assertAlmostEqual(a, b, delta=0.01)

    def test_the_way_back_is_bit_for_bit(self):
        for directory in DEMOS.values():
            name = directory.name
            self.ok("pack", "-m", directory, "-o", f"{name}-dense", "--dense-output")
            self.ok("pack", "-m", f"{name}-dense", "-o", f"{name}-again")
            self.assertEqual((self.tmp / f"{name}-again" / "model.safetensors").read_bytes(),
                             (directory / "model.safetensors").read_bytes())

    def test_made_checkpoint(self):
        """A checkpoint written here, half of whose weights are zero, packs to the formula's bytes."""
        self.config("made/config.json")
        d, f, v, kv = 128, 256, 512, 64
        shapes = {"model.embed_tokens.weight": [v, d], "model.norm.weight": [d], "lm_head.weight": [v, d]}
        for layer in range(2):
            p = f"model.layers.{layer}."
            shapes.update({p + "input_layernorm.weight": [d], p + "post_attention_layernorm.weight": [d],
                           p + "self_attn.q_proj.weight": [d, d], p + "self_attn.k_proj.weight": [kv, d],
                           p + "self_attn.v_proj.weight": [kv, d], p + "self_attn.o_proj.weight": [d, d],
                           p + "mlp.gate_proj.weight": [f, d], p + "mlp.up_proj.weight": [f, d],
                           p + "mlp.down_proj.weight": [d, f]})
        half = struct.pack("<2e", 0.03125, 0)
        write_safetensors(self.tmp / "made" / "model.safetensors",
                          {n: (s, half * (math.prod(s) // 2)) for n, s in shapes.items()})
        document = self.json("pack", "-m", "made", "-o", "packed")
        linears = [s for n, s in shapes.items() if "proj" in n]
        self.assertEqual(document["linears"], len(linears))
        self.assertEqual(document["packed_bytes"], sum(tca_bme_bytes(m, k, m * k // 2) for m, k in linears))
        self.assertEqual(len(self.json("score", "-m", "packed", "--tokens", "1,2,3")["sequences"]), 1)


class Bench(program.ProgramTest):
    def test_latency(self):
        fields = ("ttft_ms", "tpot_ms_median", "tokens_per_s", "peak_bytes", "weights_bytes")
        config = self.config(max_position_embeddings=64)
        lengths = ("--input-len", 8, "--output-len", 6, "--batch-size", 3)
        document = self.json("bench", "latency", "--config", config, "--sparsity", 0.6, "--baseline", "dense", *lengths)
        for column in ("sparse", "dense"):
            for field in fields:
                self.assertGreater(document[column][field], 0)
            self.assertEqual(document[column]["new_tokens"], 18)
            self.assertEqual(len(document[column]["step_ms"]), 5)
        self.assertAlmostEqual(document["sparse"]["sparsity"], 0.6, delta=0.02)
        self.assertLess(document["sparse"]["weights_bytes"], document["dense"]["weights_bytes"])
        ratio = document["dense"]["tpot_ms_median"] / document["sparse"]["tpot_ms_median"]
        self.assertAlmostEqual(document["speedup"], ratio, delta=1e-6 * ratio)
        one = self.json("bench", "latency", "-m", OPT, "--baseline", "dense", "--output-len", 1, "--batch-size", 2)
        self.assertIsNone(one["speedup"])
        self.assertIsNone(one["sparse"]["tpot_ms_median"])
        alone = self.json("bench", "latency", "-m", OPT, *lengths)
        self.assertNotIn("dense", alone)
        self.assertIn(b"time per output token", self.ok("bench", "latency", "-m", LLAMA, *lengths))

    def test_kernel(self):
        rows = self.json("bench", "kernel", "--shapes", "256x128,128x192", "-N", "1,8", "--sparsity", "0.5", "--device",
                         "cpu", "--cold-bytes", 1 << 20, "--csv", self.tmp / "rows.csv")
        self.assertEqual([(r["m"], r["k"], r["n"]) for r in rows],
                         [(256, 128, 1), (256, 128, 8), (128, 192, 1), (128, 192, 8)])
        for row in rows:
            for field in ("us", "dense_us", "speedup", "gbps", "floor_pct"):
                self.assertGreater(row[field], 0)
            self.assertLess(row["rel_error"], 1e-3)
        self.assertEqual(len((self.tmp / "rows.csv").read_text().splitlines()), 5)

    def test_spellings_of_a_list(self):
        for spelling in (("-N", "1,2"), ("-N", 1, 2), ("-N", 1, "--tokens", 2), ("--tokens=1,2",)):
            rows = self.json("bench", "kernel", "--shapes", "1x1", "--sparsity", 0.5, "--device", "cpu", *spelling)
            self.assertEqual([row["n"] for row in rows], [1, 2], spelling)

    def test_kernel_of_a_tiny_matrix(self):
        """A read loop over two bytes says nothing, and nobody waits for a cache full of them."""
        arguments = ("bench", "kernel", "--shapes", "1x1", "-N", 1, "--sparsity", 0.5, "--device", "cpu")
        self.assertIsNone(self.json(*arguments)[0]["floor_pct"])
        self.assertIn(b"n/a", self.ok(*arguments))


class Doctor(program.ProgramTest):
    def test_all_kernels_agree_with_the_reference(self):
        document = self.json("doctor", "--device", "cpu")
        self.assertTrue(document["ok"])
        (cpu,) = [b for b in document["backends"] if b["name"] == "cpu"]
        tests = cpu["devices"][0]["self_tests"]
        self.assertEqual({t["op"] for t in tests}, {"linear, dense", "linear, TCA-BME", "attention"})
        self.assertGreater(document["cpu"]["threads"], 0)
        self.assertGreater(document["cpu"]["memory_bytes"], 1 << 28)
        text = self.ok("doctor", "--device", "cpu").decode()
        self.assertIn("attention", text)
        hint = "built without CUDA; to include it: cmake --preset release && cmake --build --preset release\n"
        self.assertEqual(hint in text, not document["cuda_built"])
        presets = json.loads((ROOT / "CMakePresets.json").read_text())
        (release,) = [p for p in presets["configurePresets"] if p["name"] == "release"]
        self.assertEqual(release["cacheVariables"]["SPINFER_CUDA"], "AUTO", "whatever the build directory had before")
        self.assertIn("release", [p["name"] for p in presets["buildPresets"]])


class Help(program.ProgramTest):
    COMMANDS = ("generate", "score", "tokenize", "detokenize", "perplexity", "inspect", "pack", "prune", "bench", "doctor")

    def test_help_everywhere(self):
        text = self.ok("--help").decode()
        for name in self.COMMANDS:
            self.assertIn(name, text)
            self.assertIn("--help", self.ok(name, "--help").decode())
        self.assertIn("--shapes", self.ok("bench", "kernel", "--help").decode())
        self.assertIn("--input-len", self.ok("bench", "latency", "--help").decode())
        self.assertRegex(self.ok("--version").decode(), r"\Aspinfer \d+\.\d+\.\d+\n\Z")

    def test_common_flags_are_shown_where_they_mean_something(self):
        everywhere = {"--log-level", "--json"}
        flags = {"--model", "--device", "--tp", "--threads", "--seed", "--deterministic", "--watchdog", "--enforce-eager"} | everywhere
        for name in ("generate", "chat", "serve", "score", "perplexity", "bench latency", "bench throughput"):
            self.assertEqual(self.shown(name) & flags, flags, name)
        for name, some in (("tokenize", {"--model"}), ("detokenize", {"--model"}), ("pack", {"--model", "--threads"}),
                           ("prune", {"--model", "--device", "--threads"}), ("inspect", {"--model", "--tp", "--threads"}),
                           ("bench kernel", {"--device", "--threads", "--seed"}), ("doctor", {"--threads"})):
            self.assertEqual(self.shown(name) & flags, some | everywhere, name)

    def shown(self, name):
        return set(re.findall(r"--[a-z-]+", self.ok(*name.split(), "--help").decode()))

    def test_common_flags_are_taken_everywhere(self):
        common = ("--device", "cpu", "--tp", 1, "-t", 1, "--seed", 1, "--log-level", "error", "--deterministic")
        for arguments in (("tokenize", "-m", LLAMA), ("detokenize", "-m", LLAMA), ("pack", "-m", LLAMA, "-o", "packed"),
                          ("prune", "-m", LLAMA, "-o", "pruned"), ("inspect", "-m", LLAMA), ("doctor",),
                          ("bench", "kernel", "--shapes", "1x1", "-N", 1, "--sparsity", 0.5)):
            self.json(*arguments, *common, stdin=b"1")
        for name, arguments in (("doctor", ("doctor",)),
                                ("kernel", ("bench", "kernel", "--shapes", "1x1", "-N", 1, "--sparsity", 0.5))):
            done = self.run_program(*arguments, "-m", LLAMA, "--device", "cpu")
            self.assertEqual(done.returncode, 0)
            self.assertIn(f"{name} has no use for -m".encode(), done.stderr)


if __name__ == "__main__":
    program.main()

package org.lora4j.model;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/**
 * lora4j's side of src/test/python/parity.py: for each job it loads a model and an adapter, computes logits and saves the
 * adapter again. A job that fails leaves its error in a file instead, so that errors can be compared too.
 */
final class ParityRunner {
    private ParityRunner() {}

    /** @param args a file with a list of jobs: model, adapter, input, dtype and the folder out */
    public static void main(String[] args) throws IOException {
        for (JsonNode job : new JsonMapper().readTree(Files.readString(Path.of(args[0])))) {
            Path out = Path.of(job.get("out").asString());
            Files.createDirectories(out);
            try (PointerScope scope = new PointerScope();
                    NoGradGuard guard = new NoGradGuard()) {
                run(job, out);
            } catch (IOException | RuntimeException e) {
                Files.writeString(out.resolve("error.txt"), String.valueOf(e.getMessage()));
            }
        }
    }

    private static void run(JsonNode job, Path out) throws IOException {
        ScalarType type = switch (job.get("dtype").asString()) {
            case "bfloat16" -> ScalarType.BFloat16;
            case "float16" -> ScalarType.Half;
            default -> ScalarType.Float;
        };
        CausalLM base = CausalLM.load(Path.of(job.get("model").asString()), type);
        Map<String, Tensor> results = new LinkedHashMap<>();
        try (MappedTensors inputs = TensorFiles.open(Path.of(job.get("input").asString()))) {
            Tensor ids = inputs.tensor("input_ids");
            results.put("base", base.forward(ids).clone());
            LoraModel<CausalLM> model =
                    Lora.load(base, Path.of(job.get("adapter").asString()), "default");
            results.put("adapted", base.forward(ids).clone());
            try (LoraModel.Scope off = model.disabled()) {
                results.put("disabled", base.forward(ids).clone());
            }
            model.save(out.resolve("saved"), "default");
            try {
                results.put("merged", model.mergeAndUnload().forward(ids).clone());
            } catch (RuntimeException e) {
                Files.writeString(out.resolve("merge_error.txt"), String.valueOf(e.getMessage()));
            }
        }
        TensorFiles.write(out.resolve("results.safetensors"), results, TensorFiles.METADATA);
    }
}

package org.lora4j.combine;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;
import tools.jackson.databind.json.JsonMapper;

/**
 * Times combinations on the inputs of src/bench/python/combine_peft.py and writes ours.json beside peft.json. With
 * {@code seven} as second argument it only combines the adapters of a 7B shape, so that its memory can be told apart.
 */
final class CombineBench {
    private final Map<String, Object> results = new LinkedHashMap<>();
    private final Path folder;

    private CombineBench(Path folder) {
        this.folder = folder;
    }

    public static void main(String[] arguments) throws IOException {
        torch.set_num_threads(2);
        CombineBench bench = new CombineBench(Path.of(arguments[0]));
        boolean seven = arguments.length > 1;
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            if (seven) {
                bench.seven();
            } else {
                bench.factors();
                bench.ties();
                bench.extraction();
            }
        }
        String name = seven ? "seven.json" : "ours.json";
        Files.writeString(bench.folder.resolve(name), new JsonMapper().writeValueAsString(bench.results));
    }

    private interface Work {
        void run() throws IOException;
    }

    /** The least of several times in seconds, after as many that do not count. */
    private static double best(int runs, Work work) throws IOException {
        double best = Double.POSITIVE_INFINITY;
        for (int i = 0; i < 2 * runs; i++) {
            long start = System.nanoTime();
            try (PointerScope scope = new PointerScope()) {
                work.run();
            }
            double seconds = (System.nanoTime() - start) / 1e9;
            best = i < runs ? best : Math.min(best, seconds);
        }
        return best;
    }

    private void factors() throws IOException {
        try (MappedTensors inputs = TensorFiles.open(folder.resolve("inputs.safetensors"))) {
            double[] weights = {0.7, -0.4};
            List<LayerInput.Member> members = List.of(
                    new LayerInput.Member(0, inputs.tensor("a.A"), inputs.tensor("a.B"), 1, weights[0], null, null),
                    new LayerInput.Member(1, inputs.tensor("b.A"), inputs.tensor("b.B"), 1, weights[1], null, null));
            for (CombinationType type : List.of(CombinationType.SVD, CombinationType.EXACT)) {
                CombineOptions options = CombineOptions.of(type);
                LayerReport[] report = new LayerReport[1];
                double seconds = best(10, () -> {
                    LayerInput input = new LayerInput("layer", members, null);
                    try (Combined combined = Combined.of(input, options)) {
                        int rank = combined.rank(options.rank());
                        report[0] = combined.at(rank, ScalarType.Float, false, false)
                                .report();
                    }
                });
                results.put(type.peftName() + "_seconds", seconds);
                results.put(type.peftName() + "_values", report[0].values());
            }
        }
    }

    private void ties() throws IOException {
        try (MappedTensors inputs = TensorFiles.open(folder.resolve("inputs.safetensors"))) {
            List<Tensor> dense = List.of(inputs.tensor("a.dense"), inputs.tensor("b.dense"));
            CombineOptions options =
                    CombineOptions.builder(CombinationType.TIES).density(0.3).build();
            results.put("ties_seconds", best(3, () -> GroupSum.dense(dense, new double[] {0.7, 0.4}, options)));
        }
    }

    private void extraction() throws IOException {
        try (MappedTensors base = TensorFiles.open(folder.resolve("base"));
                MappedTensors tuned = TensorFiles.open(folder.resolve("tuned"))) {
            ExtractedLayer[] layer = new ExtractedLayer[1];
            Path part = folder.resolve("part.safetensors");
            results.put("extract_seconds", best(2, () -> {
                Difference change = new Difference(base.tensor("layer.weight"), tuned.tensor("layer.weight"));
                TensorFiles.write(part, ExtractedLayer.tensors(change, false, 64, 0, 0), TensorFiles.METADATA);
            }));
            try (MappedTensors made = TensorFiles.open(part)) {
                layer[0] = ExtractedLayer.of(made);
            }
            results.put("extract_error", Math.sqrt(layer[0].error(64)));
            double certificate = layer[0].total();
            for (double energy : layer[0].energies()) {
                certificate -= energy;
            }
            results.put("extract_certificate", Math.sqrt(certificate));
        }
    }

    private void seven() throws IOException {
        Path out = folder.resolve("seven/out");
        List<Path> adapters = List.of(folder.resolve("seven/a"), folder.resolve("seven/b"), folder.resolve("seven/c"));
        CombineReport report = FolderCombination.combine(
                adapters,
                List.of(0.5, 0.3, 0.2),
                CombineOptions.of(CombinationType.EXACT),
                null,
                out,
                LayerListener.NONE);
        results.put("seven_seconds", report.seconds());
        results.put("seven_ranks", report.ranks());
        for (String line : Files.readAllLines(Path.of("/proc/self/status"))) {
            if (line.startsWith("VmHWM:")) {
                results.put("seven_peak_bytes", 1024 * Long.parseLong(line.replaceAll("\\D", "")));
            }
        }
    }
}

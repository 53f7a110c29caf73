package org.lora4j.serve;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Random;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.AdapterConfigJson;
import org.lora4j.ops.TensorFiles;
import org.lora4j.ops.Tensors;

/** Two linear layers of odd sizes, and adapters for them. */
final class SmallNet extends Module {
    LinearImpl lin0;
    LinearImpl lin1;

    SmallNet(ScalarType type) {
        torch.manual_seed(5);
        lin0 = register_module("lin0", Tensors.keep(new LinearImpl(10, 21)));
        lin1 = register_module("lin1", Tensors.keep(new LinearImpl(21, 7)));
        to(type, false);
        Tensors.keep(this);
    }

    // Fields are replaced by layers with adapters, so forward reads them anew.
    Tensor forward(Tensor x) {
        return lin1.forward(torch.relu(lin0.forward(x)));
    }

    /** Writes an adapter with random factors, which differ by seed. */
    static Path adapter(Path folder, LoraConfig config, long seed, ScalarType type) throws IOException {
        Files.createDirectories(folder);
        Map<String, Tensor> tensors = new LinkedHashMap<>();
        Random random = new Random(seed);
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            if (targets(config, "lin0")) {
                int rank = config.rankFor("lin0");
                tensors.put("base_model.model.lin0.lora_A.weight", random(random, type, rank, 10));
                tensors.put("base_model.model.lin0.lora_B.weight", random(random, type, 21, rank));
            }
            if (targets(config, "lin1")) {
                int rank = config.rankFor("lin1");
                tensors.put("base_model.model.lin1.lora_A.weight", random(random, type, rank, 21));
                tensors.put("base_model.model.lin1.lora_B.weight", random(random, type, 7, rank));
            }
            TensorFiles.write(folder.resolve("adapter_model.safetensors"), tensors, TensorFiles.METADATA);
        }
        AdapterConfigJson.write(folder.resolve("adapter_config.json"), config);
        return folder;
    }

    private static boolean targets(LoraConfig config, String name) {
        return config.targetModules() != null
                && config.targetModules().toString().contains(name);
    }

    private static Tensor random(Random random, ScalarType type, int rows, int columns) {
        float[] values = new float[rows * columns];
        for (int i = 0; i < values.length; i++) {
            values[i] = (float) random.nextGaussian();
        }
        return Tensor.create(values, rows, columns).to(type);
    }

    static LoraConfig config(int rank, double alpha, String... targets) {
        return LoraConfig.builder()
                .r(rank)
                .loraAlpha(alpha)
                .targetModules(targets)
                .build();
    }
}

package org.lora4j.bench;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.LinearOptions;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.config.LoraConfig;
import org.lora4j.layer.FusedMode;
import org.lora4j.layer.LivePasses;
import org.lora4j.model.Lora;
import org.lora4j.model.LoraModel;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.model.causal.Tokenizer;
import org.lora4j.ops.LibTorch;
import org.lora4j.train.ChatTemplate;
import org.lora4j.train.Dataset;
import org.lora4j.train.JointTrainer;
import org.lora4j.train.Schedule;
import org.lora4j.train.TrainListener;
import org.lora4j.train.TrainOptions;
import org.lora4j.train.TrainResult;
import org.lora4j.train.Trainer;

/** lora4j's side of train_bench.py, which starts it and says what the parts measure. Prints {@code name value} lines. */
public final class TrainBench {
    private TrainBench() {}

    public static void main(String[] arguments) throws IOException {
        LibTorch.load();
        torch.manual_seed(1);
        switch (arguments[0]) {
            case "linear" -> linear(number(arguments, 1), number(arguments, 2), number(arguments, 3));
            case "tune" -> tune(Path.of(arguments[1]), arguments[2], Path.of(arguments[3]), number(arguments, 4));
            case "joint" -> joint(Path.of(arguments[1]), number(arguments, 2));
            default -> throw new IllegalArgumentException("part " + arguments[0]);
        }
    }

    private static int number(String[] arguments, int at) {
        return Integer.parseInt(arguments[at]);
    }

    private static void print(String name, double value) {
        System.out.printf(Locale.ROOT, "%s %.9g%n", name, value);
    }

    /** Square linear layers one after another. */
    private static final class Net extends Module {
        final LinearImpl[] layers;

        Net(int count, int width, ScalarType type) {
            layers = new LinearImpl[count];
            LinearOptions options = new LinearOptions(width, width);
            options.bias().put(false);
            for (int i = 0; i < count; i++) {
                layers[i] = register_module("l" + i, new LinearImpl(options));
                layers[i].to(type, false);
            }
        }

        Tensor forward(Tensor x) {
            for (LinearImpl layer : layers) {
                x = layer.forward(x);
            }
            return x;
        }
    }

    private static LoraModel<Net> adapted(Net net, int rank, double dropout, boolean dora) {
        LoraConfig config = LoraConfig.builder()
                .r(rank)
                .loraAlpha(2 * rank)
                .loraDropout(dropout)
                .useDora(dora)
                .targetModules(names(net))
                .build();
        LoraModel<Net> model = Lora.wrap(net, config, "a");
        net.train(true);
        return model;
    }

    private static String[] names(Net net) {
        String[] names = new String[net.layers.length];
        Arrays.setAll(names, i -> "l" + i);
        return names;
    }

    private static void linear(int tokens, int width, int rank) {
        Net frozen = new Net(1, width, ScalarType.Float);
        frozen.layers[0].weight().set_requires_grad(false);
        Net lora = new Net(1, width, ScalarType.Float);
        adapted(lora, rank, 0, false).training().mode(FusedMode.REQUIRED);
        Net plain = new Net(1, width, ScalarType.Float);
        adapted(plain, rank, 0, false).training().mode(FusedMode.OFF);
        Net dora = new Net(1, width, ScalarType.Float);
        adapted(dora, rank, 0, true).training().mode(FusedMode.REQUIRED);
        Tensor x = torch.randn(tokens, width);
        Tensor dy = torch.randn(tokens, width);
        List<Net> nets = List.of(frozen, lora, plain, dora);
        List<String> labels = List.of("frozen", "fused", "autograd", "dora");
        double[][] times = new double[nets.size()][30];
        for (int round = -5; round < 30; round++) {
            for (int i = 0; i < nets.size(); i++) {
                double seconds = step(nets.get(i), x, dy);
                if (round >= 0) {
                    times[i][round] = seconds;
                }
            }
        }
        for (int i = 0; i < nets.size(); i++) {
            Arrays.sort(times[i]);
            print(labels.get(i), times[i][times[i].length / 2]);
        }
        bordered(x, dy, rank);
    }

    private static double step(Net net, Tensor x, Tensor dy) {
        long start = System.nanoTime();
        try (PointerScope scope = new PointerScope()) {
            Tensor leaf = x.detach();
            leaf.set_requires_grad(true);
            net.forward(leaf).mul(dy).sum().backward();
        }
        LivePasses.release();
        return (System.nanoTime() - start) / 1e9;
    }

    /** The products of a step alone: weight and factors apart, and as one bordered buffer [W sB; A .]. */
    private static void bordered(Tensor x, Tensor dy, int rank) {
        long n = x.size(1);
        Tensor buffer = torch.randn(n + rank, n + rank).mul(new Scalar(0.02));
        Tensor w = buffer.narrow(0, 0, n).narrow(1, 0, n).contiguous();
        Tensor a = buffer.narrow(0, n, rank).narrow(1, 0, n).contiguous();
        Tensor b = buffer.narrow(0, 0, n).narrow(1, n, rank).contiguous();
        Tensor rows = buffer.narrow(1, 0, n);
        Tensor columns = buffer.narrow(0, 0, n);
        double[][] times = new double[2][30];
        for (int round = -5; round < 30; round++) {
            for (int way = 0; way < 2; way++) {
                long start = System.nanoTime();
                try (PointerScope scope = new PointerScope();
                        NoGradGuard noGrad = new NoGradGuard()) {
                    if (way == 0) {
                        torch.mm(x, w.t()).addmm_(torch.mm(x, a.t()), b.t());
                        torch.mm(dy, w).addmm_(torch.mm(dy, b), a);
                    } else {
                        Tensor both = torch.mm(x, rows.t());
                        both.narrow(1, 0, n).addmm_(both.narrow(1, n, rank), b.t());
                        Tensor back = torch.mm(dy, columns);
                        back.narrow(1, 0, n).addmm_(back.narrow(1, n, rank), a);
                    }
                }
                if (round >= 0) {
                    times[way][round] = (System.nanoTime() - start) / 1e9;
                }
            }
        }
        Arrays.sort(times[0]);
        Arrays.sort(times[1]);
        print("products_apart", times[0][15]);
        print("products_bordered", times[1][15]);
    }

    private static long status(String field) {
        try {
            return Files.readAllLines(Path.of("/proc/self/status")).stream()
                    .filter(line -> line.startsWith(field + ":"))
                    .mapToLong(line -> Long.parseLong(line.replaceAll("[^0-9]", "")))
                    .findFirst()
                    .orElseThrow();
        } catch (IOException e) {
            throw new java.io.UncheckedIOException(e);
        }
    }

    /** From here on, the largest resident size is of what follows. */
    private static long forgetPeak() throws IOException {
        Files.writeString(Path.of("/proc/self/clear_refs"), "5");
        return status("VmRSS");
    }

    private static TrainOptions.Builder options(int steps) {
        return TrainOptions.builder()
                .steps(steps)
                .batchSize(16)
                .maxLength(128)
                .learningRate(3e-3)
                .warmupSteps(10)
                .schedule(Schedule.COSINE)
                .seed(1);
    }

    private static LoraConfig config() {
        return LoraConfig.builder()
                .r(8)
                .loraAlpha(16)
                .targetModules("q_proj", "k_proj", "v_proj", "o_proj")
                .build();
    }

    private static Dataset data(Path demo, String name, Tokenizer tokenizer) throws IOException {
        return Dataset.read(demo.resolve("tasks").resolve(name + ".jsonl"), tokenizer, ChatTemplate.PLAIN, 128);
    }

    private static void tune(Path demo, String task, Path start, int steps) throws IOException {
        try (CausalLM base = CausalLM.load(demo.resolve("base"), ScalarType.Float);
                Tokenizer tokenizer = Tokenizer.load(demo.resolve("base"))) {
            LoraModel<CausalLM> model = Lora.wrap(base, config(), "default");
            model.save(start);
            model.training().mode(FusedMode.REQUIRED);
            Dataset train = data(demo, task + ".train", tokenizer);
            Dataset heldOut = data(demo, task + ".heldout", tokenizer);
            Trainer trainer = new Trainer(model, options(steps).build());
            print("held_out_before", trainer.evaluate(heldOut));
            long before = forgetPeak();
            TrainListener listener = (step, all, loss, rate) -> print("loss", loss);
            TrainResult result = trainer.train(train, listener);
            print("peak_kib", status("VmHWM"));
            print("growth_kib", status("VmHWM") - before);
            print("seconds", result.seconds());
            print("tokens", result.tokens());
            print("held_out", trainer.evaluate(heldOut));
        }
    }

    private static void joint(Path demo, int steps) throws IOException {
        try (CausalLM base = CausalLM.load(demo.resolve("base"), ScalarType.Float);
                Tokenizer tokenizer = Tokenizer.load(demo.resolve("base"))) {
            Dataset data = data(demo, "definitions.train", tokenizer);
            LoraModel<CausalLM> model = Lora.wrap(base, config(), "warm");
            for (int batch : new int[] {1, 2, 4}) {
                TrainOptions options = options(steps).batchSize(batch).build();
                List<JointTrainer.Job> jobs = new ArrayList<>();
                for (int i = 0; i < 8; i++) {
                    String name = "job" + batch + i;
                    model.addAdapter(name, config());
                    model.addAdapter("single" + name, config());
                    jobs.add(new JointTrainer.Job(name, data, null, options, TrainListener.NONE));
                }
                model.setActive("warm");
                new Trainer(model, options).train(data, TrainListener.NONE);
                long start = System.nanoTime();
                for (int i = 0; i < 8; i++) {
                    model.setActive("singlejob" + batch + i);
                    new Trainer(model, options).train(data, TrainListener.NONE);
                }
                print("alone" + batch, (System.nanoTime() - start) / 1e9);
                start = System.nanoTime();
                new JointTrainer(model, jobs).train();
                print("joint" + batch, (System.nanoTime() - start) / 1e9);
            }
        }
    }
}

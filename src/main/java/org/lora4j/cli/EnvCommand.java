package org.lora4j.cli;

import java.io.IOException;
import java.io.PrintWriter;
import java.util.concurrent.Callable;
import org.bytedeco.javacpp.Loader;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.ops.LibTorch;
import org.lora4j.ops.Ops;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Spec;

/** What lora4j runs on here. */
@Command(
        name = "env",
        description = "Shows what lora4j runs on: operations, LibTorch, threads, CUDA, Java.",
        mixinStandardHelpOptions = true)
final class EnvCommand implements Callable<Integer> {
    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() throws IOException {
        LibTorch.load();
        PrintWriter out = spec.commandLine().getOut();
        line(out, "operations", Ops.describe());
        line(
                out,
                "LibTorch",
                Loader.getVersion("org.bytedeco", "pytorch") + ", " + torch.get_num_threads() + " threads");
        line(out, "CUDA", cuda());
        line(out, "Java", System.getProperty("java.vm.name") + " " + Runtime.version());
        line(out, "system", System.getProperty("os.name") + " " + System.getProperty("os.arch"));
        return 0;
    }

    private static String cuda() {
        if (torch.cuda_is_available()) {
            return torch.cuda_device_count() + " device(s)";
        }
        return torch.hasCUDA() ? "built in, but no device is usable" : "not in this LibTorch; build with -Pcuda for it";
    }

    private static void line(PrintWriter out, String name, String value) {
        out.printf("%-12s%s%n", name, value);
        out.flush();
    }
}

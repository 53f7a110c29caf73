package org.lora4j.ops;

import java.util.ArrayList;
import java.util.List;
import java.util.function.Consumer;
import org.lora4j.ops.binding.Lora4j;

/** Runs a check once for each instruction set this CPU has. */
final class InstructionSets {
    private InstructionSets() {}

    static void each(Consumer<String> check) {
        NativeLibrary.load();
        List<String> found = new ArrayList<>();
        try {
            for (String isa : List.of("plain", "avx2", "avx512")) {
                if (Lora4j.l4_set_cpu_isa(isa) == Lora4j.OK) {
                    found.add(isa);
                    check.accept(isa);
                }
            }
        } finally {
            NativeLibrary.useInstructionSet(null);
        }
        if (!found.contains("plain")) {
            throw new AssertionError("no instruction set was found");
        }
    }
}

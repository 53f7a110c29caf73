package org.lora4j.config;

import java.util.Arrays;
import java.util.Collection;
import java.util.Collections;
import java.util.LinkedHashSet;
import java.util.Set;

/**
 * Which modules a configuration means: a set of names, one regular expression over the whole path, or every linear
 * layer. This is the value of PEFT's {@code target_modules} and {@code exclude_modules}.
 *
 * <p>{@link LoraConfig} checks the selector it is given, and names the field in its complaint.
 */
public sealed interface ModuleSelector {
    /**
     * Names of modules. A name stands for the module of exactly this path and for every module whose path ends with a
     * dot and the name.
     *
     * @param names in the order given, each once; may be empty, which selects nothing
     */
    record Names(Set<String> names) implements ModuleSelector {
        public Names {
            names = Collections.unmodifiableSet(new LinkedHashSet<>(names));
        }

        @Override
        public String toString() {
            return names.toString();
        }
    }

    /**
     * A regular expression in the syntax of Python's {@code re}, which must match the whole path.
     *
     * @param regex see {@link PythonRegex} for what is understood
     */
    record Regex(String regex) implements ModuleSelector {
        @Override
        public String toString() {
            return "regex " + regex;
        }
    }

    /** Every linear layer except the output layer. */
    record AllLinear() implements ModuleSelector {
        @Override
        public String toString() {
            return ALL_LINEAR;
        }
    }

    /** The string that stands for {@link AllLinear} in a file, in any case. */
    String ALL_LINEAR = "all-linear";

    static ModuleSelector names(String... names) {
        return names(Arrays.asList(names));
    }

    static ModuleSelector names(Collection<String> names) {
        return new Names(new LinkedHashSet<>(names));
    }

    static ModuleSelector regex(String regex) {
        return new Regex(regex);
    }

    static ModuleSelector allLinear() {
        return new AllLinear();
    }
}

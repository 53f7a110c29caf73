package org.lora4j.format;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.function.Consumer;
import java.util.stream.Stream;
import java.util.zip.ZipEntry;
import java.util.zip.ZipOutputStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Attacks the reader of torch.save's files; each attack of docs/adapter-format.md has its test here. */
class PyTorchFileAttackTest {
    private static final int VALUES = 12;

    @TempDir
    Path folder;

    /** A dict with the tensor "w" (3, 4) of the storage "0" of twelve floats. */
    private static byte[] good() {
        return dictOf(tensor -> tensor.tensor(VALUES, 0, new long[] {3, 4}, new long[] {4, 1}));
    }

    private static byte[] dictOf(Consumer<PickleText> value) {
        PickleText pickle = new PickleText().op('}').string("w");
        value.accept(pickle);
        return pickle.op('s').stop();
    }

    private static StoredZip zip(byte[] pickle) {
        StoredZip zip = new StoredZip();
        zip.add("a/data.pkl", pickle);
        zip.add("a/data/0", new byte[4 * VALUES]);
        return zip;
    }

    private PyTorchFile open(byte[] bytes) throws IOException {
        Path file = folder.resolve("attack.bin");
        Files.write(file, bytes);
        return PyTorchFile.open(file);
    }

    private void assertRefused(byte[] bytes, String message) {
        assertThatThrownBy(() -> open(bytes).close())
                .isInstanceOf(FormatException.class)
                .hasMessageStartingWith(folder.resolve("attack.bin") + ": ")
                .hasMessageContaining(message)
                .satisfies(e -> assertThat(e.getMessage()).hasSizeLessThan(900));
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void theFilesOfTheseTestsAreReadWhenNothingIsWrong(boolean wide) throws IOException {
        StoredZip zip = zip(good());
        zip.wide = wide;
        try (PyTorchFile file = open(zip.write())) {
            assertThat(file.tensor("w")).hasToString("w: F32[3, 4]");
            assertThat(file.read("w").remaining()).isEqualTo(4 * VALUES);
        }
    }

    static Stream<Arguments> wrongViews() {
        long huge = Long.MAX_VALUE;
        return Stream.of(
                view("last element is number 12 of a storage of 12", VALUES, 1, new long[] {3, 4}, 4, 1),
                view("last element is number 14", VALUES, 0, new long[] {3, 4}, 4, 2),
                view("negative", VALUES, -1, new long[] {3}, 1),
                view("negative", VALUES, 11, new long[] {3}, -1),
                view("negative", VALUES, 0, new long[] {-3}, 1),
                view("negative", VALUES, huge, new long[] {0}, Long.MIN_VALUE),
                view("beyond 63 bits", VALUES, huge, new long[] {2}, 1),
                view("beyond 63 bits", VALUES, 0, new long[] {huge, 2}, 0, 0),
                view("beyond 63 bits", VALUES, 0, new long[] {huge, huge, huge}, huge, huge, huge),
                view("1 sizes but 2 strides", VALUES, 0, new long[] {3}, 1, 1),
                view("65 dimensions", VALUES, 0, ones(65), ones(65)),
                view("has 48 bytes where a storage has 52", VALUES + 1, 0, new long[] {3, 4}, 4, 1),
                view("a storage has -1 elements", -1, 0, new long[] {0}, 1),
                view("elements", huge, 0, new long[] {1}, 1),
                view("more than 16 times", VALUES, 0, new long[] {1 << 20, 12}, 0, 1));
    }

    private static long[] ones(int count) {
        long[] ones = new long[count];
        Arrays.fill(ones, 1);
        return ones;
    }

    private static Arguments view(String message, long elements, long offset, long[] size, long... stride) {
        return Arguments.of(message, elements, offset, size, stride);
    }

    @ParameterizedTest
    @MethodSource("wrongViews")
    void aViewBeyondItsStorageIsRefused(String message, long elements, long offset, long[] size, long[] stride) {
        byte[] pickle = dictOf(tensor -> tensor.tensor(elements, offset, size, stride));
        assertRefused(zip(pickle).write(), message);
    }

    static Stream<Arguments> wrongPickles() {
        return Stream.of(
                pickle("a value that is not there", new PickleText().op('s')),
                pickle("a value that is not there", new PickleText()),
                pickle("up to a mark that is not there", new PickleText().op('t')),
                pickle(
                        "a value that is not there",
                        new PickleText().op('}').op('(').op('s')),
                pickle(
                        "a key without a value",
                        new PickleText().op('}').op('(').string("w").op('u')),
                pickle(
                        "asks for value 7, which it has not kept",
                        new PickleText().op('h').raw(7)),
                pickle("a length of 4294967295", new PickleText().op('X').int32(-1)),
                pickle("it ends there", new PickleText().op('X').int32(Integer.MAX_VALUE)),
                pickle(
                        "a length of 3000000000",
                        new PickleText().op('}').op('r').int32((int) 3_000_000_000L)),
                pickle("not UTF-8", new PickleText().op('X').int32(2).raw(0xc0, 0x80)),
                pickle("a number of 255 bytes", new PickleText().raw(0x8a, 255)),
                pickle("longer than 256 characters", new PickleText().global("a".repeat(300), "b")),
                pickle("or not ASCII", new PickleText().global("t\u00f6rch", "b")),
                pickle(
                        "opcode 0x93",
                        new PickleText().string("os").string("system").raw(0x93)),
                pickle("opcode 0x69", new PickleText().op('i')),
                pickle("opcode 0x81", new PickleText().raw(0x81)),
                pickle(
                        "where a tuple belongs",
                        new PickleText()
                                .global("collections", "OrderedDict")
                                .op('N')
                                .op('R')),
                pickle(
                        "where a global belongs",
                        new PickleText().op('N').op(')').op('R')),
                pickle(
                        "it calls torch.FloatStorage",
                        new PickleText().global("torch", "FloatStorage").op(')').op('R')),
                pickle(
                        "it makes an OrderedDict from values",
                        new PickleText()
                                .global("collections", "OrderedDict")
                                .op('N')
                                .raw(0x85)
                                .op('R')),
                pickle(
                        "a tensor is made of 0 values",
                        new PickleText()
                                .global("torch._utils", "_rebuild_tensor_v2")
                                .op(')')
                                .op('R')),
                pickle(
                        "where a tensor belongs",
                        new PickleText()
                                .global("torch._utils", "_rebuild_parameter")
                                .op('N')
                                .op('N')
                                .op('N')
                                .raw(0x87)
                                .op('R')),
                pickle(
                        "something other than a whole storage",
                        new PickleText().string("module").raw(0x85).op('Q')),
                pickle(
                        "collections.OrderedDict is no class of storages",
                        new PickleText()
                                .op('(')
                                .string("storage")
                                .global("collections", "OrderedDict")
                                .string("0")
                                .string("cpu")
                                .number(1)
                                .op('t')
                                .op('Q')),
                pickle(
                        "has two types or sizes",
                        new PickleText().storage("FloatStorage", "0", 12).storage("HalfStorage", "0", 24)),
                pickle("where a list belongs", new PickleText().op('}').op('N').op('a')),
                pickle("where a dict belongs", new PickleText().op('N').op('}').op('b')));
    }

    private static Arguments pickle(String message, PickleText pickle) {
        return Arguments.of(message, pickle.stop());
    }

    @ParameterizedTest
    @MethodSource("wrongPickles")
    void aPickleThatIsNoStateDictIsRefused(String message, byte[] pickle) {
        assertRefused(zip(pickle).write(), message);
    }

    @Test
    void depthAndReferencesCostNothing() throws IOException {
        PickleText deep = new PickleText().op('}').string("w").op('N');
        for (int i = 0; i < 1_000_000; i++) {
            deep.raw(0x85);
        }
        assertRefused(zip(deep.op('s').stop()).write(), "holds a tuple under \"w\"");

        // Each tuple holds the one before twice: two to the power of a thousand values, were they walked.
        PickleText laughs = new PickleText().op('}').string("w").op(')');
        for (int i = 0; i < 1000; i++) {
            laughs.op('r').int32(i).op('j').int32(i).raw(0x86);
        }
        assertRefused(zip(laughs.op('s').stop()).write(), "holds a tuple under \"w\"");
    }

    @Test
    void aListThatHoldsItselfIsNamedLikeAnyOther() {
        PickleText pickle =
                new PickleText().op(']').op('q').raw(0).op('h').raw(0).op('a');
        assertRefused(zip(pickle.stop()).write(), "holds a list instead");
    }

    @ParameterizedTest
    @ValueSource(chars = {'}', 'N', '('})
    void millionsOfValuesAreRefused(char opcode) {
        PickleText pickle = new PickleText();
        for (int i = 0; i < 3_000_000; i++) {
            pickle.op(opcode);
        }
        assertRefused(zip(pickle.stop()).write(), "it makes more than 1048576 values");
    }

    @Test
    void aPickleOfManyMegabytesIsRefusedUnread() {
        byte[] pickle = new byte[PickleInput.MAX_BYTES + 1];
        assertRefused(zip(pickle).write(), "data.pkl is missing or larger than");
    }

    @Test
    void aCompressedFileIsRefused() throws IOException {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        try (ZipOutputStream zip = new ZipOutputStream(out)) {
            zip.putNextEntry(new ZipEntry("a/data.pkl"));
            zip.write(good());
            zip.putNextEntry(new ZipEntry("a/data/0"));
            zip.write(new byte[50_000_000]);
        }
        assertRefused(out.toByteArray(), "is compressed or encrypted");

        StoredZip bomb = zip(good());
        bomb.records.get(1).bytes = 1L << 31;
        assertRefused(bomb.write(), "is compressed or encrypted");
        StoredZip locked = zip(good());
        locked.records.get(0).flags = 1;
        assertRefused(locked.write(), "is compressed or encrypted");
    }

    @Test
    void recordsOutsideTheFileAreRefused() {
        StoredZip outside = zip(good());
        outside.wide = true;
        outside.records.get(1).header = Long.MAX_VALUE;
        assertRefused(outside.write(), "begins outside the file");
        outside.records.get(1).header = -1L;
        assertRefused(outside.write(), "begins outside the file");
        StoredZip large = zip(good());
        large.wide = true;
        large.records.get(1).bytes = Long.MAX_VALUE;
        large.records.get(1).stored = Long.MAX_VALUE;
        assertRefused(large.write(), "ends outside the file");
    }

    @Test
    void recordsOverEachOtherAreRefused() {
        // The storage is the pickle itself, behind a header of its own that lies in the data of the pickle's record.
        byte[] hidden = new byte[30 + 8 + 48];
        System.arraycopy(new byte[] {'P', 'K', 3, 4}, 0, hidden, 0, 4);
        hidden[26] = 8;
        System.arraycopy("a/data/0".getBytes(java.nio.charset.StandardCharsets.US_ASCII), 0, hidden, 30, 8);
        byte[] pickle = good();
        byte[] both = Arrays.copyOf(pickle, pickle.length + hidden.length);
        System.arraycopy(hidden, 0, both, pickle.length, hidden.length);
        StoredZip zip = new StoredZip();
        zip.add("a/data.pkl", both);
        StoredZip.Record inside = zip.add("a/data/0", new byte[48]);
        inside.header = 30L + "a/data.pkl".length() + pickle.length;
        assertRefused(zip.write(), "lie over each other");
    }

    @Test
    void twoFilesInOneAreRefused() {
        StoredZip twice = zip(good());
        twice.add("a/data/0", new byte[4 * VALUES]);
        assertRefused(twice.write(), "it has two records \"a/data/0\"");
        StoredZip renamed = zip(good());
        renamed.records.get(1).localName = "a/data/1";
        assertRefused(renamed.write(), "has another name in its own header");
        StoredZip counted = zip(good());
        counted.extraCount = 1;
        assertRefused(counted.write(), "has 2 records and claims 3");
        StoredZip prefixed = zip(good());
        prefixed.before = "PK\3\4 another file".getBytes(java.nio.charset.StandardCharsets.ISO_8859_1);
        byte[] whole = prefixed.write();
        byte[] cut = Arrays.copyOfRange(whole, prefixed.before.length, whole.length);
        assertRefused(cut, "does not end at");
        byte[] appended = Arrays.copyOf(whole, whole.length + 3);
        assertRefused(appended, "no directory at its end");
    }

    @Test
    void anUnknownByteOrderIsRefused() {
        for (String order : new String[] {"middle", "", "little endian"}) {
            StoredZip zip = zip(good());
            zip.add("a/byteorder", order.getBytes(java.nio.charset.StandardCharsets.US_ASCII));
            assertRefused(zip.write(), "neither \"little\" nor \"big\"");
        }
    }

    @Test
    void aMissingRecordIsNamed() {
        StoredZip zip = new StoredZip();
        zip.add("a/data.pkl", good());
        assertRefused(zip.write(), "data/0 is missing where a storage has 48");
        assertRefused(new StoredZip().write(), "begins neither as a zip");
        StoredZip other = new StoredZip();
        other.add("b/data.pk", good());
        assertRefused(other.write(), "data.pkl is missing");
    }

    @ParameterizedTest
    @ValueSource(strings = {"dtypes", "legacy_dtypes", "legacy_views"})
    void everyFileCutShortIsRefused(String name) throws IOException {
        byte[] whole = Files.readAllBytes(Golden.path("format/bin/" + name + ".bin"));
        for (int length = 0; length < whole.length; length += 7) {
            byte[] cut = Arrays.copyOf(whole, length);
            assertThatThrownBy(() -> open(cut).close()).as("%s bytes", length).isInstanceOf(FormatException.class);
        }
    }
}

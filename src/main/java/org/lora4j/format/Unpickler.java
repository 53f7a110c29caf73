package org.lora4j.format;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.jspecify.annotations.Nullable;

/**
 * Runs pickles of protocol 2, as {@code torch.save} writes them, and makes nothing but numbers, strings, tuples, lists,
 * dicts, storages and tensors. A pickle can name any function of Python to be called; here it can name those of
 * {@link #CALLABLE} and the element types, and anything else ends the reading. PyTorch's own {@code weights_only} mode
 * allows these and a few more.
 *
 * <p>Nothing here recurses, so depth is harmless; objects that hold themselves are never walked.
 */
final class Unpickler {
    private static final String ORDERED_DICT = "collections.OrderedDict";
    private static final String TENSOR = "torch._utils._rebuild_tensor_v2";
    private static final String TYPED_TENSOR = "torch._utils._rebuild_tensor_v3";
    private static final String PARAMETER = "torch._utils._rebuild_parameter";

    /** What a pickle may call. */
    static final Set<String> CALLABLE = Set.of(ORDERED_DICT, TENSOR, TYPED_TENSOR, PARAMETER);

    /** The most containers made, values on the stack, or values kept for later: of each. */
    static final int MAX_VALUES = 1 << 20;

    /** Something a pickle names. */
    record Global(String name) {}

    private static final Object NONE = new Object();

    private final PickleInput in;
    private final String file;
    private final Map<String, TorchStorage> storages = new LinkedHashMap<>();
    private final List<Object> stack = new ArrayList<>();
    private final List<Integer> marks = new ArrayList<>();
    private final Map<Integer, Object> memo = new HashMap<>();
    private int containers;

    Unpickler(PickleInput in, String file) {
        this.in = in;
        this.file = file;
    }

    /** The storages of all tensors so far, by key. */
    Map<String, TorchStorage> storages() {
        return storages;
    }

    /** Runs one pickle, up to its end. */
    Object load() throws FormatException {
        stack.clear();
        marks.clear();
        memo.clear();
        while (true) {
            int opcode = in.unsignedByte();
            if (opcode == '.') {
                return pop();
            }
            step(opcode);
        }
    }

    private void step(int opcode) throws FormatException {
        switch (opcode) {
            case 0x80 -> protocol(in.unsignedByte());
            case '(' -> marks.add(limited(stack.size(), marks.size()));
            case '}' -> push(made(new LinkedHashMap<String, Object>()));
            case ']' -> push(made(new ArrayList<>()));
            case ')' -> push(made(new Object[0]));
            case 't' -> push(made(popToMark().toArray()));
            case 0x85 -> tuple(1);
            case 0x86 -> tuple(2);
            case 0x87 -> tuple(3);
            case 'N' -> push(NONE);
            case 0x88 -> push(true);
            case 0x89 -> push(false);
            case 'J' -> push((long) in.signedInt());
            case 'K' -> push((long) in.unsignedByte());
            case 'M' -> push((long) in.unsignedShort());
            case 0x8a -> push(in.signedLong(in.unsignedByte()));
            case 'G' -> push(in.bigEndianDouble());
            case 'X' -> push(in.utf8(in.length()));
            case 'U' -> push(in.utf8(in.unsignedByte()));
            case 'q' -> remember(in.unsignedByte());
            case 'r' -> remember(in.length());
            case 'h' -> push(recall(in.unsignedByte()));
            case 'j' -> push(recall(in.length()));
            case 'c' -> push(global(in.line(), in.line()));
            case 'R' -> push(call(pop(Object[].class), pop(Global.class)));
            case 'b' -> build();
            case 'Q' -> push(storage(pop(Object[].class)));
            case 'a' -> append(List.of(pop()));
            case 'e' -> append(popToMark());
            case 's' -> {
                Object value = pop();
                setItems(List.of(pop(), value));
            }
            case 'u' -> setItems(popToMark());
            default -> throw in.wrong(String.format("the opcode 0x%02x is none torch.save writes by default", opcode));
        }
    }

    private void protocol(int version) throws FormatException {
        if (version != 2) {
            throw in.wrong("it has pickle protocol " + version + ", and torch.save writes 2 by default");
        }
    }

    private void push(Object value) throws FormatException {
        stack.add(value);
        limited(0, stack.size());
    }

    private Object made(Object container) throws FormatException {
        limited(0, ++containers);
        return container;
    }

    private int limited(int value, int count) throws FormatException {
        if (count > MAX_VALUES) {
            throw in.wrong("it makes more than " + MAX_VALUES + " values");
        }
        return value;
    }

    private int floor() {
        return marks.isEmpty() ? 0 : marks.get(marks.size() - 1);
    }

    private Object pop() throws FormatException {
        Object top = top();
        stack.remove(stack.size() - 1);
        return top;
    }

    private Object top() throws FormatException {
        if (stack.size() <= floor()) {
            throw in.wrong("it takes a value that is not there");
        }
        return stack.get(stack.size() - 1);
    }

    private <T> T pop(Class<T> type) throws FormatException {
        return as(type, pop());
    }

    private <T> T as(Class<T> type, Object value) throws FormatException {
        if (!type.isInstance(value)) {
            throw in.wrong("it has " + describe(value) + " where " + describe(type) + " belongs");
        }
        return type.cast(value);
    }

    private List<Object> popToMark() throws FormatException {
        if (marks.isEmpty()) {
            throw in.wrong("it takes values up to a mark that is not there");
        }
        List<Object> above = stack.subList(floor(), stack.size());
        List<Object> items = new ArrayList<>(above);
        above.clear();
        marks.remove(marks.size() - 1);
        return items;
    }

    private void tuple(int length) throws FormatException {
        Object[] items = new Object[length];
        for (int i = length - 1; i >= 0; i--) {
            items[i] = pop();
        }
        push(made(items));
    }

    private void remember(int index) throws FormatException {
        memo.put(index, top());
        limited(0, memo.size());
    }

    private Object recall(int index) throws FormatException {
        Object value = memo.get(index);
        if (value == null) {
            throw in.wrong("it asks for value " + index + ", which it has not kept");
        }
        return value;
    }

    private Global global(String module, String name) throws FormatException {
        String path = module + "." + name;
        boolean known = CALLABLE.contains(path)
                || TorchTypes.STORAGES.containsKey(path)
                || TorchTypes.DTYPES.containsKey(path)
                || path.equals(TorchTypes.UNTYPED_STORAGE);
        if (!known) {
            throw new FormatException(file + ": its pickle asks for the global " + path
                    + ", which lora4j does not load: a pickle can run any code, and a state dict of plain tensors does "
                    + "not need this. If you trust the file, convert it to safetensors in Python and load that");
        }
        return new Global(path);
    }

    private Object call(Object[] arguments, Global function) throws FormatException {
        switch (function.name()) {
            case ORDERED_DICT -> {
                if (arguments.length > 0) {
                    throw in.wrong("it makes an OrderedDict from values");
                }
                return made(new LinkedHashMap<String, Object>());
            }
            case TENSOR -> {
                return tensor(arguments, 6, null);
            }
            case TYPED_TENSOR -> {
                count(arguments, 7, 8);
                DType dtype =
                        TorchTypes.DTYPES.get(as(Global.class, arguments[6]).name());
                if (dtype == null) {
                    throw in.wrong(as(Global.class, arguments[6]).name() + " is no type of such a tensor");
                }
                return tensor(arguments, 7, dtype);
            }
            case PARAMETER -> {
                count(arguments, 3, 3);
                return as(StridedTensor.class, arguments[0]);
            }
            default -> throw in.wrong("it calls " + function.name());
        }
    }

    /**
     * Makes a tensor of (storage, offset, size, stride, requires_grad, hooks, [dtype], [metadata]).
     *
     * @param required how many arguments there must be; the metadata may follow
     * @param dtype the type of a tensor that views a storage without one
     */
    private StridedTensor tensor(Object[] arguments, int required, @Nullable DType dtype) throws FormatException {
        count(arguments, required, required + 1);
        boolean plain = arguments.length == required
                || arguments[required] == NONE
                || (arguments[required] instanceof Map<?, ?> map && map.isEmpty());
        if (!plain) {
            throw in.wrong("a tensor is conjugated or negated; make it plain with resolve_conj() and resolve_neg()");
        }
        TorchStorage storage = as(TorchStorage.class, arguments[0]);
        if ((storage.dtype() == null) != (dtype != null)) {
            throw in.wrong("a tensor and its storage do not agree on the element type");
        }
        DType type = storage.dtype() == null ? dtype : storage.dtype();
        long offset = as(Long.class, arguments[1]);
        long[] size = numbers(arguments[2]);
        long[] stride = numbers(arguments[3]);
        String defect = StridedTensor.defect(storage, type, offset, size, stride);
        if (!defect.isEmpty()) {
            throw in.wrong("a tensor of size " + shorten(size) + ", stride " + shorten(stride) + " and offset " + offset
                    + " does not fit its storage \"" + SafetensorsHeader.shorten(storage.key()) + "\": " + defect);
        }
        return new StridedTensor(storage, type, offset, size, stride);
    }

    private static String shorten(long[] numbers) {
        return SafetensorsHeader.shorten(Arrays.toString(numbers));
    }

    private void count(Object[] arguments, int least, int most) throws FormatException {
        if (arguments.length < least || arguments.length > most) {
            throw in.wrong("a tensor is made of " + arguments.length + " values");
        }
    }

    private long[] numbers(Object value) throws FormatException {
        Object[] tuple = as(Object[].class, value);
        long[] numbers = new long[tuple.length];
        for (int i = 0; i < numbers.length; i++) {
            numbers[i] = as(Long.class, tuple[i]);
        }
        return numbers;
    }

    /** The storage of ("storage", class, key, device, elements); older files add a sixth value, None. */
    private TorchStorage storage(Object[] id) throws FormatException {
        boolean whole = id.length == 5 || (id.length == 6 && id[5] == NONE);
        if (!whole || !"storage".equals(id[0])) {
            throw in.wrong("it refers to something other than a whole storage");
        }
        String type = as(Global.class, id[1]).name();
        DType dtype = TorchTypes.STORAGES.get(type);
        if (dtype == null && !type.equals(TorchTypes.UNTYPED_STORAGE)) {
            throw in.wrong(type + " is no class of storages");
        }
        String key = as(String.class, id[2]);
        long elements = as(Long.class, id[4]);
        int size = dtype == null ? 1 : dtype.bits() / 8;
        if (elements < 0 || elements > Long.MAX_VALUE / size) {
            throw in.wrong("a storage has " + elements + " elements");
        }
        TorchStorage storage = new TorchStorage(key, dtype, elements, elements * size);
        TorchStorage known = storages.putIfAbsent(key, storage);
        if (known != null && !known.equals(storage)) {
            throw in.wrong("the storage \"" + SafetensorsHeader.shorten(key) + "\" has two types or sizes");
        }
        return known == null ? storage : known;
    }

    /** The attributes of an OrderedDict, such as the versions of modules: without meaning for its tensors. */
    private void build() throws FormatException {
        as(Map.class, pop());
        as(Map.class, top());
    }

    private void append(List<Object> items) throws FormatException {
        @SuppressWarnings("unchecked")
        List<Object> list = (List<Object>) as(List.class, top());
        list.addAll(items);
    }

    private void setItems(List<Object> items) throws FormatException {
        @SuppressWarnings("unchecked")
        Map<String, Object> map = (Map<String, Object>) as(Map.class, top());
        if (items.size() % 2 != 0) {
            throw in.wrong("a dict has a key without a value");
        }
        for (int i = 0; i < items.size(); i += 2) {
            map.put(as(String.class, items.get(i)), items.get(i + 1));
        }
    }

    /** What a value is, in Python's words. */
    static String describe(Object value) {
        if (value == NONE) {
            return "None";
        }
        return value instanceof Global global ? global.name() : describe(value.getClass());
    }

    private static String describe(Class<?> type) {
        if (type.isArray()) {
            return "a tuple";
        }
        if (Map.class.isAssignableFrom(type)) {
            return "a dict";
        }
        if (List.class.isAssignableFrom(type)) {
            return "a list";
        }
        return switch (type.getSimpleName()) {
            case "String" -> "a string";
            case "Long" -> "a whole number";
            case "Double" -> "a number";
            case "Boolean" -> "a bool";
            case "StridedTensor" -> "a tensor";
            case "TorchStorage" -> "a storage";
            default -> "a global";
        };
    }
}

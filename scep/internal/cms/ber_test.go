package cms

import (
	"bytes"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"runtime"
	"strings"
	"testing"
)

func unhex(s string) []byte { return must(hex.DecodeString(strings.ReplaceAll(s, " ", ""))) }

func TestNormalize(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{
		{"DER", "30 03 02 01 05", "30 03 02 01 05"},
		{"empty SEQUENCE", "30 00", "30 00"},
		{"CMS-11 trailing newline", "30 00 0d 0a", "30 00"},
		{"CMS-11 trailing NUL", "30 00 00 00 00", "30 00"},
		{"indefinite", "30 80 02 01 05 00 00", "30 03 02 01 05"},
		{"indefinite, empty", "30 80 00 00", "30 00"},
		{"indefinite and NUL", "30 80 00 00 00", "30 00"},
		{"nested indefinite", "30 80 31 80 02 01 05 00 00 00 00", "30 05 31 03 02 01 05"},
		{"indefinite in definite", "30 07 31 80 02 01 05 00 00", "30 05 31 03 02 01 05"},
		{"definite in indefinite", "30 80 31 03 02 01 05 00 00", "30 05 31 03 02 01 05"},
		{"long length", "30 82 00 04 02 81 01 05", "30 03 02 01 05"},
		{"length with many zeros", "04 8a 00 00 00 00 00 00 00 00 00 01 aa", "04 01 aa"},
		{"constructed OCTET STRING", "24 06 04 01 aa 04 01 bb", "04 02 aa bb"},
		{"constructed OCTET STRING, indefinite", "24 80 04 01 aa 04 00 04 01 bb 00 00", "04 02 aa bb"},
		{"constructed OCTET STRING, empty", "24 80 00 00", "04 00"},
		{"nested constructed OCTET STRING", "24 80 24 80 04 01 aa 24 03 04 01 bb 00 00 04 01 cc 00 00", "04 03 aa bb cc"},
		{"constructed UTF8String", "2c 80 04 01 61 0c 01 62 00 00", "0c 02 61 62"},
		{"constructed PrintableString", "33 06 13 01 31 13 01 39", "13 02 31 39"},
		{"constructed UTCTime", "37 06 04 01 31 04 01 39", "17 02 31 39"},
		{"implicitly tagged string stays", "a0 80 04 01 aa 24 03 04 01 bb 00 00", "a0 06 04 01 aa 04 01 bb"},
		{"EXTERNAL", "28 03 02 01 05", "28 03 02 01 05"},
		{"application and private", "61 80 df 00 00", ""}, // 0xdf is a high tag number
		{"private", "61 80 de 00 00 00", "61 02 de 00"},

		{"nothing", "", ""},
		{"one byte", "30", ""},
		{"trailing element", "30 00 30 00", ""},
		{"high tag number", "3f 81 01 00", ""},
		{"golden 1f80", "1f 80", ""},
		{"golden 3081", "30 81", ""},
		{"golden 5f4d", "5f 4d", ""},
		{"reserved length", "30 ff 00", ""},
		{"length 2^63", "30 88 80 00 00 00 00 00 00 00", ""},
		{"length 2^64", "30 89 01 00 00 00 00 00 00 00 00", ""},
		{"length octets missing", "30 84 00 00", ""},
		{"too short", "30 03 02 01", ""},
		{"child too long", "30 03 02 02 05", ""},
		{"child longer than its parent, not than the message", "30 05 30 01 02 01 05", ""},
		{"indefinite primitive", "04 80 00 00", ""},
		{"indefinite primitive, context", "80 80 00 00", ""},
		{"unterminated", "30 80 02 01 05", ""},
		{"unterminated in definite", "30 05 30 80 02 01 05", ""},
		{"end-of-contents cut", "30 80 02 01 05 00", ""},
		{"end-of-contents in definite", "30 02 00 00", ""},
		{"end-of-contents alone", "00 00", ""},
		{"end-of-contents with a length", "30 80 00 01 aa 00 00", ""},
		{"constructed BIT STRING", "23 04 03 02 00 aa", ""},
		{"constructed INTEGER", "22 03 02 01 05", ""},
		{"constructed NULL", "25 00", ""},
		{"constructed OID", "26 80 00 00", ""},
		{"primitive SEQUENCE", "10 00", ""},
		{"primitive SET", "11 01 aa", ""},
		{"OCTET STRING of INTEGER", "24 03 02 01 05", ""},
		{"OCTET STRING of context", "24 03 80 01 05", ""},
		{"OCTET STRING of UTF8String", "24 03 0c 01 61", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := unhex(test.in)
			got, err := Normalize(in)
			if test.want == "" {
				if !errors.Is(err, ErrSyntax) {
					t.Fatalf("got %x, %v; want ErrSyntax", got, err)
				}
				return
			}
			if err != nil || !bytes.Equal(got, unhex(test.want)) {
				t.Fatalf("got %x, %v; want %s", got, err, test.want)
			}
			if !bytes.Equal(in, unhex(test.in)) {
				t.Error("the input was written to")
			}
			if again, err := Normalize(got); err != nil || !bytes.Equal(again, got) {
				t.Errorf("not idempotent: %x, %v", again, err)
			}
		})
	}
}

func TestNormalizeLimits(t *testing.T) {
	nested := func(n int) []byte {
		b := []byte{5, 0}
		for range n - 1 {
			b = seq(b)
		}
		return b
	}
	// A level is a constructed element.
	if _, err := Normalize(nested(maxDepth + 1)); err != nil {
		t.Errorf("%d levels: %v", maxDepth, err)
	}
	if _, err := Normalize(nested(maxDepth + 2)); err == nil {
		t.Errorf("%d levels: no error", maxDepth+1)
	}
	if _, err := Normalize(seq(bytes.Repeat(null, maxElements-1))); err != nil {
		t.Errorf("%d elements: %v", maxElements, err)
	}
	if _, err := Normalize(seq(bytes.Repeat(null, maxElements))); err == nil {
		t.Errorf("%d elements: no error", maxElements+1)
	}
}

func TestNormalizeDERIsFree(t *testing.T) {
	der := newDraft().der()
	var got []byte
	if n := testing.AllocsPerRun(100, func() { got, _ = Normalize(der) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if &got[0] != &der[0] || len(got) != len(der) {
		t.Error("DER was copied")
	}
	for _, chunk := range []int{0, 1, 7, 1000} {
		got, err := Normalize(indefinite(der, chunk))
		if err != nil || !bytes.Equal(got, der) {
			t.Errorf("chunk %d: not the same, %v", chunk, err)
		}
	}
}

// CMS-20: each of these took a peer seconds, gigabytes or its life.
func TestHostileNesting(t *testing.T) {
	bombs := map[string][]byte{
		"G01 nesting, indefinite":        bytes.Repeat([]byte{0x30, 0x80}, 1<<20),
		"G03 nesting, definite":          definiteBomb(512 << 10),
		"G05 unterminated":               append([]byte{0x30, 0x80}, bytes.Repeat([]byte{2, 1, 5}, 1<<20/3)...),
		"many empty elements":            tlv(0x30, bytes.Repeat([]byte{4, 0}, 1<<20)),
		"constructed strings":            bytes.Repeat([]byte{0x24, 0x80}, 1<<20),
		"one long string, in bad pieces": append([]byte{0x24, 0x80}, bytes.Repeat([]byte{4, 1, 5}, 1<<20/3)...),
	}
	for name, b := range bombs {
		t.Run(name, func(t *testing.T) {
			for what, read := range map[string]func([]byte) error{
				"Normalize":      func(b []byte) error { _, err := Normalize(b); return err },
				"ParseMessage":   func(b []byte) error { _, err := ParseMessage(b); return err },
				"ParseEnvelope":  func(b []byte) error { _, err := ParseEnvelope(b); return err },
				"ParseCertsOnly": func(b []byte) error { _, _, err := ParseCertsOnly(b); return err },
			} {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				err := read(b)
				runtime.ReadMemStats(&after)
				if err == nil {
					t.Errorf("%s: no error", what)
				}
				if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
					t.Errorf("%s: %d bytes allocated", what, n)
				}
			}
		})
	}
}

// definiteBomb returns nested SEQUENCEs of definite lengths, about size bytes long.
func definiteBomb(size int) []byte {
	b := make([]byte, size)
	pos := size
	for pos >= 5 {
		n := size - pos
		pos -= 5
		copy(b[pos:], []byte{0x30, 0x83, byte(n >> 16), byte(n >> 8), byte(n)})
	}
	return b[pos:]
}

// isDER reports whether encoding/asn1 takes b for one element all the way down, and the types in
// it are as we want them. It is for comparison only.
func isDER(b []byte, depth int, count *int) bool {
	var v asn1.RawValue
	rest, err := asn1.Unmarshal(b, &v)
	if err != nil || len(rest) > 0 {
		return false
	}
	return derValue(v, depth, count)
}

func derValue(v asn1.RawValue, depth int, count *int) bool {
	*count++
	if *count > maxElements || v.Tag > 30 || v.FullBytes[0]&0x1f == 0x1f {
		return false
	}
	if v.Class == asn1.ClassUniversal {
		switch v.Tag {
		case 0, 15:
			return false
		case 8, 11, 16, 17, 29:
			if !v.IsCompound {
				return false
			}
		default:
			if v.IsCompound {
				return false
			}
		}
	}
	if !v.IsCompound {
		return true
	}
	if depth++; depth > maxDepth {
		return false
	}
	for b := v.Bytes; len(b) > 0; {
		var child asn1.RawValue
		rest, err := asn1.Unmarshal(b, &child)
		if err != nil || !derValue(child, depth, count) {
			return false
		}
		b = rest
	}
	return true
}

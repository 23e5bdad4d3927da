// Package cms reads and writes CMS (RFC 5652) as SCEP uses it: signed pkiMessages, envelopes and
// certs-only messages. It takes BER and writes DER.
//
// Everything here may be fed hostile bytes. Nothing here logs, keeps state or has settings:
// whether an algorithm is allowed is the caller's to say, so the readers name what they see.
// What a reader returns shares memory with what it was given, unless its documentation says
// otherwise.
package cms

import (
	"errors"
	"fmt"
)

// ErrSyntax is wrapped by the error of every reader for bytes that are not what they should be.
var ErrSyntax = errors.New("cms: malformed")

func syntaxError(what string) error { return fmt.Errorf("%w %s", ErrSyntax, what) }

// Hostile nesting costs no more than these: pkiMessages have about ten levels and, with a full
// bag of certificates, about a thousand elements.
const (
	maxDepth    = 32
	maxElements = 10_000
)

// Normalize returns the one BER element in b with definite, minimal lengths and without
// constructed strings of universal tags; b itself if it is so already. It drops trailing CR, LF
// and NUL, and refuses other trailing bytes. It refuses more than 32 levels, more than 10 000
// elements, tag numbers above 30 and constructed BIT STRINGs. It is iterative, and linear in
// len(b).
//
// An implicitly tagged string does not show its type: one that is constructed stays so.
func Normalize(b []byte) ([]byte, error) {
	s, err := scan(b, nil)
	if err != nil {
		return nil, err
	}
	for _, c := range b[s.end:] {
		if c != '\r' && c != '\n' && c != 0 {
			return nil, syntaxError("BER: trailing bytes")
		}
	}
	if s.der {
		return b[:s.end:s.end], nil
	}
	s, err = scan(b, make([]node, 0, s.count))
	if err != nil {
		return nil, err
	}
	return encode(b, s.nodes), nil
}

// A node is one element; children follow their parent.
type node struct {
	tag        byte
	kind       kind
	parent     int // index; -1 for the first
	start, end int // the content; of primitive elements only
	size       int // of the content as it will be written
}

type kind uint8

const (
	primitive   kind = iota
	constructed      // header and children
	joined           // a constructed string: becomes primitive
	piece            // of a joined one, itself primitive: content without header
	pieces           // of a joined one, itself constructed
)

type scanned struct {
	end   int  // where the element ends
	count int  // elements in it
	der   bool // there is nothing to rewrite
	nodes []node
}

// A level is an element that the scan is inside of.
type level struct {
	limit      int  // no child goes beyond it
	indefinite bool // ends with end-of-contents octets, not at limit
	str        byte // tag number, if it is a constructed string
	node       int
}

// scan walks over the first element in b. It fills nodes unless that is nil.
func scan(b []byte, nodes []node) (scanned, error) {
	var (
		s     = scanned{der: true}
		stack [maxDepth]level
		depth int
		pos   int
	)
	for {
		limit, parent, str := len(b), -1, byte(0)
		if depth > 0 {
			top := &stack[depth-1]
			limit, parent, str = top.limit, top.node, top.str
			done := !top.indefinite && pos == limit
			if top.indefinite && limit-pos >= 2 && b[pos] == 0 && b[pos+1] == 0 {
				pos += 2
				done = true
			}
			if done {
				if depth--; depth == 0 {
					break
				}
				continue
			}
		}
		h, ok := readHeader(b[:limit], pos)
		if !ok {
			return scanned{}, syntaxError("BER")
		}
		n := node{tag: h.tag, parent: parent, start: h.start, end: h.end}
		if n.kind, ok = h.kind(str); !ok {
			return scanned{}, syntaxError("BER: no such type")
		}
		if s.count++; s.count > maxElements {
			return scanned{}, syntaxError("BER: too many elements")
		}
		if !h.minimal || n.kind == joined {
			s.der = false
		}
		if nodes != nil {
			nodes = append(nodes, n)
		}
		if h.tag&tagConstructed == 0 {
			if pos = h.end; depth == 0 {
				break
			}
			continue
		}
		if depth == maxDepth {
			return scanned{}, syntaxError("BER: too deep")
		}
		stack[depth] = level{limit: h.end, indefinite: h.indefinite, node: s.count - 1}
		if n.kind == joined || n.kind == pieces {
			stack[depth].str = h.tag & tagNumber
		}
		depth++
		pos = h.start
	}
	s.end = pos
	s.nodes = nodes
	return s, nil
}

const (
	tagClass       = 0xc0
	tagConstructed = 0x20
	tagNumber      = 0x1f
)

type header struct {
	tag        byte
	start, end int // of the content; if the length is indefinite, end is where it must end at the latest
	indefinite bool
	minimal    bool // as DER wants it
}

// readHeader reads the identifier and length octets at pos. ok is false if the element does not
// fit into b.
func readHeader(b []byte, pos int) (h header, ok bool) {
	if len(b)-pos < 2 {
		return h, false
	}
	h.tag = b[pos]
	if h.tag&tagNumber == tagNumber {
		return h, false
	}
	length := int(b[pos+1])
	pos += 2
	switch {
	case length < 0x80:
		h.minimal = true
	case length == 0x80:
		h.start, h.end, h.indefinite = pos, len(b), true
		return h, h.tag&tagConstructed != 0
	default:
		octets := length & 0x7f
		if octets == 0x7f || octets > len(b)-pos { // 0xff is reserved
			return h, false
		}
		h.minimal = b[pos] != 0
		var long int64
		for _, c := range b[pos : pos+octets] {
			// Nothing above len(b) goes on to the next octet, so nothing overflows.
			if long = long<<8 | int64(c); long > int64(len(b)) {
				return h, false
			}
		}
		length = int(long)
		pos += octets
		h.minimal = h.minimal && length >= 0x80
	}
	if length > len(b)-pos {
		return h, false
	}
	h.start, h.end = pos, pos+length
	return h, true
}

// kind says what becomes of the element, which is inside a constructed string with the tag
// number str if that is not 0. ok is false if there can be no such element.
func (h *header) kind(str byte) (_ kind, ok bool) {
	isConstructed := h.tag&tagConstructed != 0
	number := h.tag & tagNumber
	if str != 0 {
		// X.690, 8.23: the pieces of a character string are OCTET STRINGs. Some write its own type.
		if h.tag&tagClass != 0 || number != 4 && number != str {
			return 0, false
		}
		if isConstructed {
			return pieces, true
		}
		return piece, true
	}
	if h.tag&tagClass != 0 {
		if isConstructed {
			return constructed, true
		}
		return primitive, true
	}
	switch number {
	case 0, 15: // end-of-contents out of place; reserved
		return 0, false
	case 8, 11, 16, 17, 29: // EXTERNAL, EMBEDDED PDV, SEQUENCE, SET, CHARACTER STRING
		return constructed, isConstructed
	case 4, 7, 12, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 30: // strings, and times, which are strings
		if isConstructed {
			return joined, true
		}
	}
	return primitive, !isConstructed
}

// encode writes the nodes of b.
func encode(b []byte, nodes []node) []byte {
	total := 0
	for i := len(nodes) - 1; i >= 0; i-- { // children come first
		n := &nodes[i]
		if n.tag&tagConstructed == 0 {
			n.size = n.end - n.start
		}
		whole := n.size
		if n.kind < piece {
			whole += headerSize(n.size)
		}
		if n.parent < 0 {
			total = whole
		} else {
			nodes[n.parent].size += whole
		}
	}
	out := make([]byte, 0, total)
	for i := range nodes {
		n := &nodes[i]
		switch n.kind {
		case primitive, constructed:
			out = appendHeader(out, n.tag, n.size)
		case joined:
			out = appendHeader(out, n.tag&^tagConstructed, n.size)
		}
		if n.tag&tagConstructed == 0 {
			out = append(out, b[n.start:n.end]...)
		}
	}
	return out
}

func headerSize(length int) int {
	n := 2
	if length >= 0x80 {
		for ; length > 0; length >>= 8 {
			n++
		}
	}
	return n
}

func appendHeader(out []byte, tag byte, length int) []byte {
	octets := headerSize(length) - 2
	if octets == 0 {
		return append(out, tag, byte(length))
	}
	out = append(out, tag, 0x80|byte(octets))
	for i := octets - 1; i >= 0; i-- {
		out = append(out, byte(length>>(8*i)))
	}
	return out
}

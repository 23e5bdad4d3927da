package sqlite

import (
	"database/sql/driver"
	"encoding/hex"
	"math/big"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// How values are stored; back again below.

// digits returns the 32 bytes of a valid ID.
func digits(id scep.ID) []byte {
	b := make([]byte, 0, 32)
	b, _ = hex.AppendDecode(b, []byte(id))
	return b
}

func allDigits(ids []scep.ID) driver.Value {
	var b []byte
	for _, id := range ids {
		b = append(b, digits(id)...)
	}
	return blob(b)
}

func micros(t time.Time) driver.Value {
	if t.IsZero() {
		return nil
	}
	return t.UnixMicro()
}

func text(s string) driver.Value {
	if s == "" {
		return nil
	}
	return s
}

func blob(b []byte) driver.Value {
	if len(b) == 0 {
		return nil
	}
	return b
}

func truth(b bool) driver.Value {
	if b {
		return int64(1)
	}
	return int64(0)
}

// number returns the big-endian bytes of n, behind a zero byte if it is negative.
func number(n *big.Int) []byte {
	if n.Sign() < 0 {
		return append([]byte{0}, n.Bytes()...)
	}
	return n.Bytes()
}

func toID(v driver.Value) scep.ID {
	b, _ := v.([]byte)
	return scep.ID(hex.EncodeToString(b))
}

func toIDs(v driver.Value) []scep.ID {
	b, _ := v.([]byte)
	var ids []scep.ID
	for ; len(b) >= 32; b = b[32:] {
		ids = append(ids, toID(b[:32]))
	}
	return ids
}

func toTime(v driver.Value) time.Time {
	if us, ok := v.(int64); ok {
		return time.UnixMicro(us).UTC()
	}
	return time.Time{}
}

func toInt(v driver.Value) int64 {
	n, _ := v.(int64)
	return n
}

func toText(v driver.Value) string {
	s, _ := v.(string)
	return s
}

func toBlob(v driver.Value) []byte {
	b, _ := v.([]byte)
	return b
}

func toNumber(v driver.Value) *big.Int {
	b, ok := v.([]byte)
	if !ok {
		return nil
	}
	n := new(big.Int).SetBytes(b)
	if len(b) > 0 && b[0] == 0 {
		n.Neg(n)
	}
	return n
}

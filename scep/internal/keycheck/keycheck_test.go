//lint:file-ignore SA1019 only by deprecated means can keys be this bad

package keycheck

import (
	"crypto"
	"crypto/dsa"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"math"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Keys are made once: they take long.
var (
	good2048 = sync.OnceValue(func() *rsa.PublicKey { return &must(rsa.GenerateKey(rand.Reader, 2048)).PublicKey })
	good1024 = sync.OnceValue(func() *rsa.PublicKey { return &must(rsa.GenerateKey(rand.Reader, 1024)).PublicKey })
)

func TestGood(t *testing.T) {
	keys := []crypto.PublicKey{good2048(), must(ed25519Key())}
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		keys = append(keys, must(ecdsa.GenerateKey(c, rand.Reader)).Public())
	}
	for _, e := range []int{65539, 1<<31 - 1} {
		keys = append(keys, &rsa.PublicKey{N: good2048().N, E: e})
	}
	for _, key := range keys {
		for _, bounds := range [][2]int{{0, 0}, {2048, 8192}, {2048, 2048}, {-5, 1 << 30}} {
			if err := Check(key, bounds[0], bounds[1]); err != nil {
				t.Errorf("%T, %d to %d bits: %v", key, bounds[0], bounds[1], err)
			}
		}
	}
	for _, bounds := range [][2]int{{0, 0}, {1024, 2048}, {512, 1024}, {0, 100}} {
		if err := Check(good1024(), bounds[0], bounds[1]); err != nil {
			t.Errorf("1024 bits, %d to %d: %v", bounds[0], bounds[1], err)
		}
	}
}

func ed25519Key() (ed25519.PublicKey, error) {
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	return pub, err
}

// random returns a number of so many bits that no prime up to mostFactor divides.
func random(bits int) *big.Int {
	for {
		n := must(rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits-1))))
		n.SetBit(n, bits-1, 1).SetBit(n, 0, 1)
		if !rsaTables().smallFactor(n) {
			return n
		}
	}
}

// prime returns the first prime that is not below n.
func prime(n *big.Int) *big.Int {
	n = new(big.Int).Set(n)
	n.SetBit(n, 0, 1)
	for !n.ProbablyPrime(10) {
		n.Add(n, big.NewInt(2))
	}
	return n
}

// times returns a modulus of 2048 bits that factor divides.
func times(factor int64) *big.Int {
	f := big.NewInt(factor)
	for {
		n := new(big.Int).Mul(random(2048-f.BitLen()+1), f)
		if n.BitLen() == 2048 {
			return n
		}
	}
}

// apart returns the product of two primes of 1024 bits, 2^n apart or somewhat more.
func apart(n uint) *big.Int {
	p := prime(new(big.Int).SetBit(random(1023), 1023, 1))
	p.SetBit(p, 1022, 1)
	p = prime(p)
	q := new(big.Int).Add(p, new(big.Int).Lsh(big.NewInt(1), n))
	return q.Mul(prime(q), p)
}

// roca returns a modulus of 2·bits bits of the kind that CVE-2017-15361 is about; the first so
// many primes are in its M.
func roca(bits, primes int) *big.Int {
	m := big.NewInt(1)
	for p := uint64(2); primes > 0; p++ {
		if isPrime(p) {
			m.Mul(m, new(big.Int).SetUint64(p))
			primes--
		}
	}
	one := func() *big.Int {
		for {
			// The two greatest bits are set, so that the product has 2·bits bits.
			k := must(rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits-2))))
			k.Add(k, new(big.Int).Lsh(big.NewInt(3), uint(bits-2))).Div(k, m)
			a := must(rand.Int(rand.Reader, m))
			p := new(big.Int).Exp(big.NewInt(65537), a, m)
			if p.Add(p, k.Mul(k, m)); p.BitLen() == bits && p.ProbablyPrime(10) {
				return p
			}
		}
	}
	for {
		if n := new(big.Int).Mul(one(), one()); n.BitLen() == 2*bits {
			return n
		}
	}
}

func TestBad(t *testing.T) {
	n := good2048().N
	p256 := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	p224 := must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))
	offCurve := &ecdsa.PublicKey{Curve: elliptic.P256(), X: p256.X, Y: new(big.Int).Add(p256.Y, big.NewInt(1))}
	negative := &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int).Neg(p256.X), Y: p256.Y}
	long := &ecdsa.PublicKey{Curve: elliptic.P256(), X: p256.X, Y: new(big.Int).Lsh(p256.Y, 1<<20)}
	infinity := &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int), Y: new(big.Int)}

	for _, tt := range []struct {
		name string
		key  crypto.PublicKey
		says string
	}{
		{"1024 bits", good1024(), "RSA key has 1024 bits; 2048 to 8192 are allowed"},
		{"1023 bits", &rsa.PublicKey{N: random(1023), E: 65537}, "RSA key has 1023 bits"},
		{"2047 bits", &rsa.PublicKey{N: random(2047), E: 65537}, "RSA key has 2047 bits"},
		{"2049 bits", &rsa.PublicKey{N: random(2049), E: 65537}, "multiple of 8"},
		{"8200 bits", &rsa.PublicKey{N: random(8200), E: 65537}, "RSA key has 8200 bits"},
		{"16777216 bits", &rsa.PublicKey{N: new(big.Int).SetBit(new(big.Int), 1<<24-1, 1), E: 65537}, "RSA key has 16777216 bits"},
		{"no modulus", &rsa.PublicKey{E: 65537}, "not known"},
		{"modulus 0", &rsa.PublicKey{N: new(big.Int), E: 65537}, "not positive"},
		{"negative modulus", &rsa.PublicKey{N: new(big.Int).Neg(n), E: 65537}, "not positive"},
		{"even modulus", &rsa.PublicKey{N: new(big.Int).SetBit(n, 0, 0), E: 65537}, "even"},
		{"exponent 0", &rsa.PublicKey{N: n}, "exponent"},
		{"exponent 1", &rsa.PublicKey{N: n, E: 1}, "exponent"},
		{"exponent 2", &rsa.PublicKey{N: n, E: 2}, "exponent"},
		{"exponent 3", &rsa.PublicKey{N: n, E: 3}, "exponent"},
		{"exponent -65537", &rsa.PublicKey{N: n, E: -65537}, "exponent"},
		{"exponent 65535", &rsa.PublicKey{N: n, E: 65535}, "exponent"},
		{"exponent 65538", &rsa.PublicKey{N: n, E: 65538}, "exponent"},
		{"factor 3", &rsa.PublicKey{N: times(3), E: 65537}, "small factor"},
		{"factor 5", &rsa.PublicKey{N: times(5), E: 65537}, "small factor"},
		{"factor 743", &rsa.PublicKey{N: times(743), E: 65537}, "small factor"},
		{"factor 751", &rsa.PublicKey{N: times(751), E: 65537}, "small factor"},
		{"power of 3", &rsa.PublicKey{N: new(big.Int).Exp(big.NewInt(3), big.NewInt(1297), nil), E: 65537}, "small factor"},
		{"primes 2 apart", &rsa.PublicKey{N: apart(1), E: 65537}, "close together"},
		{"primes 2^400 apart", &rsa.PublicKey{N: apart(400), E: 65537}, "close together"},
		{"primes 2^515 apart", &rsa.PublicKey{N: apart(515), E: 65537}, "close together"},
		{"ROCA 2048", &rsa.PublicKey{N: roca(1024, 126), E: 65537}, "CVE-2017-15361"},
		{"P-224", p224.Public(), "P-256, P-384 or P-521"},
		{"no curve", &ecdsa.PublicKey{}, "P-256, P-384 or P-521"},
		{"curve of a stranger", &ecdsa.PublicKey{Curve: p256.Params()}, "P-256, P-384 or P-521"},
		{"no point", &ecdsa.PublicKey{Curve: elliptic.P256()}, "no point"},
		{"point off the curve", offCurve, "not on its curve"},
		{"negative coordinate", negative, "not on its curve"},
		{"long coordinate", long, "not on its curve"},
		{"point at infinity", infinity, "not on its curve"},
		{"short Ed25519", ed25519.PublicKey(make([]byte, 31)), "has 31 bytes"},
		{"long Ed25519", ed25519.PublicKey(make([]byte, 33)), "has 33 bytes"},
		{"no Ed25519", ed25519.PublicKey(nil), "has 0 bytes"},
		{"DSA", &dsa.PublicKey{}, "not known"},
		{"X25519", must(ecdh.X25519().GenerateKey(rand.Reader)).PublicKey(), "not known"},
		{"nil", nil, "not known"},
		{"nil RSA", (*rsa.PublicKey)(nil), "not known"},
		{"nil ECDSA", (*ecdsa.PublicKey)(nil), "not known"},
		{"not a pointer", *good2048(), "not known"},
	} {
		start := time.Now()
		err := Check(tt.key, 2048, 8192)
		if d := time.Since(start); d > time.Second {
			t.Errorf("%s: took %v", tt.name, d)
		}
		if err == nil {
			t.Errorf("%s: admitted", tt.name)
			continue
		}
		if s := err.Error(); !strings.Contains(s, tt.says) || len(s) > 120 {
			t.Errorf("%s: %q does not say %q, or is long", tt.name, s, tt.says)
		}
	}

	// The sizes of 1024 and 3072 bits, which have other M.
	for _, n := range []*big.Int{roca(512, 71), roca(1536, 126)} {
		if err := Check(&rsa.PublicKey{N: n, E: 65537}, 0, 0); err == nil || !strings.Contains(err.Error(), "CVE-2017-15361") {
			t.Errorf("ROCA with %d bits: %v", n.BitLen(), err)
		}
	}
	// Bounds that are asked for hold, and none reach beyond 1024 to 8192.
	for _, tt := range []struct{ bits, least, most int }{{2048, 3072, 0}, {2048, 0, 1024}, {2048, 9000, 0}, {1016, 512, 0}, {8200, 0, 16384}, {1024, 2048, 1024}} {
		if err := Check(&rsa.PublicKey{N: random(tt.bits), E: 65537}, tt.least, tt.most); err == nil || !strings.Contains(err.Error(), "are allowed") {
			t.Errorf("%d bits, %d to %d asked for: %v", tt.bits, tt.least, tt.most, err)
		}
	}
}

// Beyond its rounds Fermat's method does not go: that is what bounds the time.
func TestFermatRounds(t *testing.T) {
	tables := rsaTables()
	for range 3 {
		// a = √n rounded up + i has a² - n = 1 for n = (a-1)(a+1).
		for _, tt := range []struct {
			round int64
			found bool
		}{{0, true}, {1, true}, {50, true}, {fermatRounds - 1, true}, {fermatRounds, false}} {
			// n = a² - b² with b² a little over 2·round·a puts a at that round.
			a := random(1024)
			b := new(big.Int).Sqrt(new(big.Int).Mul(a, big.NewInt(2*tt.round)))
			b.Add(b, big.NewInt(1))
			n := new(big.Int).Sub(new(big.Int).Mul(a, a), b.Mul(b, b))
			if got := tables.closePrimes(n); got != tt.found {
				t.Errorf("found in round %d: %v, want %v", tt.round, got, tt.found)
			}
		}
		p := random(1024)
		if !tables.closePrimes(p.Mul(p, p)) {
			t.Error("a square is not found")
		}
	}
}

func TestTables(t *testing.T) {
	tables := rsaTables()
	// How likely a good modulus is to look like ROCA.
	bits := 0.0
	for _, c := range tables.coset {
		n := 0
		for _, in := range c.in {
			if in {
				n++
			}
		}
		bits -= math.Log2(float64(n) / float64(c.prime-1))
	}
	if bits < 27 || bits > 30 {
		t.Errorf("ROCA fingerprint has %.1f bits", bits)
	}
	t.Logf("%d primes, %.1f bits", len(tables.coset), bits)

	product := uint64(1)
	for _, m := range moduli {
		product *= m
	}
	if product != modulus {
		t.Errorf("moduli have the product %d", product)
	}
	passed := 0
	for x := range uint64(100_000) {
		if !tables.maybeSquare(x * x % modulus) {
			t.Fatalf("%d² is not taken for a square", x)
		}
		if tables.maybeSquare(x) {
			passed++
		}
	}
	if passed > 500 {
		t.Errorf("%d of 100000 numbers pass for squares", passed)
	}
}

func FuzzRSA(f *testing.F) {
	f.Add(good2048().N.Bytes(), 65537)
	f.Add(good1024().N.Bytes(), 3)
	f.Add(roca(512, 71).Bytes(), 65537)
	f.Add(apart(400).Bytes(), 65537)
	f.Add(times(751).Bytes(), 1<<31-1)
	f.Add(make([]byte, 5000), -1)
	f.Fuzz(func(t *testing.T, modulus []byte, e int) {
		n := new(big.Int).SetBytes(modulus)
		before := new(big.Int).Set(n)
		err := Check(&rsa.PublicKey{N: n, E: e}, 0, 0)
		if n.Cmp(before) != 0 {
			t.Fatal("the modulus was changed")
		}
		if err != nil {
			return
		}
		if bits := n.BitLen(); bits < 1024 || bits > 8192 || bits%8 != 0 || e < 65537 || int64(e) >= 1<<31 || e%2 == 0 {
			t.Fatalf("admitted %d bits, exponent %d", bits, e)
		}
		for p := int64(2); p <= mostFactor; p++ {
			if new(big.Int).Rem(n, big.NewInt(p)).Sign() == 0 {
				t.Fatalf("admitted a multiple of %d", p)
			}
		}
	})
}

func BenchmarkRSA2048(b *testing.B) { benchmark(b, good2048()) }

func BenchmarkRSA8192(b *testing.B) { benchmark(b, &rsa.PublicKey{N: random(8192), E: 65537}) }

func BenchmarkP256(b *testing.B) {
	benchmark(b, must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).Public())
}

func benchmark(b *testing.B, key crypto.PublicKey) {
	rsaTables()
	b.ReportAllocs()
	for b.Loop() {
		if err := Check(key, 0, 0); err != nil {
			b.Fatal(err)
		}
	}
}

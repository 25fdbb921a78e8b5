package ceremony

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"

	"bulla/record"
)

// Proposal is the document that officers sign: what shall be done, in which log, against which state of it, and until when. It is
// canonical JSON, and its bytes are what every signature is over.
type Proposal struct {
	Action   string          `json:"action"`   // one of the Action constants
	Content  json.RawMessage `json:"content"`  // what exactly, an object by action
	Expires  string          `json:"expires"`  // in UTC, nine digits and Z: from then on it counts for nothing
	Head     Head            `json:"head"`     // of the log, as the proposer saw it
	Log      string          `json:"log"`      // origin
	Number   uint64          `json:"number"`   // from 1, without gaps; no number is ever used twice
	Proposer string          `json:"proposer"` // name of the officer, who signs too
	State    record.Hash     `json:"state"`    // State.Hash: what it was made against
	V        int             `json:"v"`        // 1

	content content // as parsed
}

// Head is a size of the log and the root of its tree at that size.
type Head struct {
	Root record.Hash `json:"root"`
	Size uint64      `json:"size"`
}

// MaxDocument bounds a document, in bytes: with a signature it fits into an entry.
const MaxDocument = 48 << 10

// ParseProposal reads a document. What it accepts encodes to the same bytes.
func ParseProposal(document []byte) (*Proposal, error) {
	p := new(Proposal)
	if len(document) > MaxDocument {
		return nil, refuse(RuleDocument, "%d bytes are too many: the limit is %d", len(document), MaxDocument)
	}
	if err := record.UnmarshalCanonical(document, p); err != nil {
		return nil, refuse(RuleDocument, "%v", err)
	}
	if err := record.CheckOrigin(p.Log); err != nil {
		return nil, refuse(RuleDocument, "log: %v", err)
	}
	if _, err := record.ParseTime(p.Expires); err != nil {
		return nil, refuse(RuleDocument, "expires: %v", err)
	}
	switch {
	case p.V != 1:
		return nil, refuse(RuleDocument, "v: must be 1")
	case p.Number == 0 || p.Number > record.MaxInt:
		return nil, refuse(RuleDocument, "number: must be 1 to 2^53-1")
	case p.Head.Size == 0 || p.Head.Size > record.MaxInt:
		return nil, refuse(RuleDocument, "head.size: must be 1 to 2^53-1")
	case !isName(p.Proposer):
		return nil, refuse(RuleDocument, "proposer: must be the name of an officer")
	}
	var err error
	if p.content, err = parseContent(p.Action, p.Content); err != nil {
		return nil, err
	}
	return p, nil
}

// DocumentHash names a document: SHA-256 of its bytes.
func DocumentHash(document []byte) record.Hash { return sha256.Sum256(document) }

// Asks is what the proposal asks for, as it was parsed: a pointer to the struct of its action.
func (p *Proposal) Asks() any { return p.content }

// Over says of a proposal that has expired how it ended.
func (p *Proposal) Over() string { return "expired on " + p.Expires }

func (p *Proposal) expires() int64 {
	t, err := record.ParseTime(p.Expires)
	if err != nil {
		return always // a proposal that was parsed has one
	}
	return t
}

// genesisDocument is what officers sign of a genesis.
type genesisDocument struct {
	Action string      `json:"action"`
	Leaf   record.Hash `json:"leaf"`
	Log    string      `json:"log"`
	V      int         `json:"v"`
}

// GenesisDocument is what officers sign to approve the genesis of a log, whose leaf hash names every byte of it. It is no proposal,
// and no proposal is one.
func GenesisDocument(origin string, leaf record.Hash) ([]byte, error) {
	return record.MarshalCanonical(genesisDocument{ActionGenesis, leaf, origin, 1})
}

// ParseGenesisDocument reads what GenesisDocument makes, and nothing else.
func ParseGenesisDocument(document []byte) (origin string, leaf record.Hash, err error) {
	var d genesisDocument
	if err := record.UnmarshalCanonical(document, &d); err != nil {
		return "", leaf, refuse(RuleDocument, "%v", err)
	}
	if err := record.CheckOrigin(d.Log); err != nil {
		return "", leaf, refuse(RuleDocument, "log: %v", err)
	}
	again, err := GenesisDocument(d.Log, d.Leaf)
	if err != nil || !bytes.Equal(again, document) {
		return "", leaf, refuse(RuleDocument, "not the document that approves a genesis")
	}
	return d.Log, d.Leaf, nil
}
